"""Folders that are no run that is through, as commands refuse them."""

import subprocess
import sys
from pathlib import Path

import pytest

from hf_accum.errors import UserError
from hf_accum.run.result import check_through


def test_a_folder_of_several_seeds_is_no_run_that_was_stopped(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "seed-0", tmp_path / "seed-1"):
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").touch()
    with pytest.raises(UserError, match=r"several seeds in it; give one of these: \S*seed-0 \S*seed-1$"):
        check_through(tmp_path)


def test_a_wrong_folder_is_refused_without_waiting_for_torch(tmp_path: Path) -> None:
    """And the run that was probably meant is named."""
    (tmp_path / "january").mkdir()
    (tmp_path / "january" / "config.yaml").touch()
    code = """
import sys
from hf_accum.cli.main import main
try:
    main(["predict", sys.argv[1], "--dataset", "rows.csv", "--output", sys.argv[1] + "/told.csv"])
finally:
    assert not {"torch", "transformers"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {tmp_path}: has to be the folder of a run (it has no config.yaml); runs that are there: "
        f"{tmp_path / 'january'}\n"
    )
