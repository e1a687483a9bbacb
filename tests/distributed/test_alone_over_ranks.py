"""The pieces in a loop on accelerate, with nothing else of the package: on one rank and on two."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from launching import launch

SCRIPT = Path(__file__).with_name("alone_over_ranks.py")


def test_the_script_imports_public_names_alone() -> None:
    imported = [node for node in ast.walk(ast.parse(SCRIPT.read_text())) if isinstance(node, ast.ImportFrom)]
    assert {node.module for node in imported if "hf_accum" in str(node.module)} == {"hf_accum"}


@pytest.mark.parametrize("num_ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_gradients_resume_and_predictions_are_those_of_one_unsplit_batch(num_ranks: int, tmp_path: Path) -> None:
    if num_ranks == 1:  # as `python script.py`
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(tmp_path)], capture_output=True, text=True, check=False, timeout=240
        )
    else:
        done = launch(str(SCRIPT), str(tmp_path), num_processes=num_ranks)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["num_ranks"] == num_ranks
    assert len(result["worst"]) == 2 * (3 * 3 * 3 - 3) + 1 + 2 + 1 + 1 + (2 if num_ranks > 1 else 0)
    name = max(result["worst"], key=result["worst"].get)
    assert result["worst"][name] <= 1e-12, name
