"""The command `hf-accum`: its help needs nothing heavy."""

import sys
from pathlib import Path

import pytest
from launching import run

from hf_accum.cli.main import main

pytestmark = pytest.mark.usefixtures("no_network")


# Lightness


def test_help_needs_no_torch() -> None:
    code = """
import sys
from hf_accum.cli.main import main
for arguments in (
    ["--help"], ["plan", "--help"], ["report", "--help"],
    ["plan", "unheard_of"], ["plan", "json", "--memory", "x"],
):
    try:
        main(arguments)
    except SystemExit as ended:
        print(" ".join(arguments), "ended with", ended.code, file=sys.stderr)
heavy = {"torch", "transformers", "accelerate", "peft", "datasets", "numpy", "matplotlib", "bitsandbytes", "rich"}
print("heavy:", sorted(heavy & set(sys.modules)), file=sys.stderr)
import hf_accum.tuner.plan
assert "torch" in sys.modules, "the oracle is blind"
"""
    done = run([sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr
    for arguments, status in (("--help", 0), ("plan --help", 0), ("plan unheard_of", 2), ("--memory x", 2)):
        assert f"{arguments} ended with {status}" in done.stderr
    assert "heavy: []" in done.stderr
    own = ("--gpu", "--memory", "--capability", "--precision", "--variants", "--picture", "--json", "--verified")
    for flag in own:
        assert flag in done.stdout


def test_a_flag_of_the_command_that_is_misspelt_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Though the recipe's parser refuses it, which knows the recipe's flags."""
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    command = [
        "predict",
        str(tmp_path),
        "--dataset=x",
        f"--output={tmp_path}/x.csv",
        "--recipe=clinical_classification",
    ]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--max_new_token=3", "--text_colum=note"])
    assert ended.value.code == 2
    hints = capsys.readouterr().err.splitlines()[1:-1]
    assert hints == ["--max_new_token: is --max_new_tokens meant?", "--text_colum: is --text_column meant?"]


def test_a_command_that_there_is_not_is_told_how_a_training_starts(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["train"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        assert "accelerate launch -m recipes.NAME" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["merge"])
    assert capsys.readouterr().err.endswith("(--help lists all flags)\n")
