"""What is said of flags that there are not."""

import re
from pathlib import Path

import pytest

from hf_accum.cli.unknown_flags import OF_THE_TRAINER, hints
from hf_accum.config.flags import flag_names
from recipes.clinical_classification import ClinicalClassificationConfig, main

NAMES = flag_names(ClinicalClassificationConfig)
GUIDE = Path(__file__).parents[3] / "recipes" / "guides" / "moving-from-the-trainer.md"


def test_what_stands_for_a_flag_of_the_trainer_is_there() -> None:
    for name, here in OF_THE_TRAINER.items():
        assert name not in NAMES
        if not here.startswith(("accelerate launch", "hf-accum publish")):
            assert re.match(r"--([\w.]+)", here)[1] in NAMES, here  # type: ignore[index]


def test_the_guide_says_the_same() -> None:
    rows = re.findall(r"^\| `(\w+)`(?:, `(\w+)`)* \| `(--[\w.]+)", GUIDE.read_text(), re.MULTILINE)
    said = {name: here for *names, here in rows for name in names if name in OF_THE_TRAINER}
    assert len(said) >= 12
    for name, here in said.items():
        assert OF_THE_TRAINER[name].startswith(here) or here == "--mixed_precision", name


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("unrecognized arguments: --learnign_rate 3", ["--learnign_rate: is --learning_rate meant?"]),
        (
            "unrecognized arguments: --lora.ranks=3 --bf16",
            ["--lora.ranks: is --lora.rank meant?", "--bf16 is here accelerate launch --mixed_precision bf16"],
        ),
        ("unrecognized arguments: --max_seq_length 3 --max_seq_length 4", ["--max_seq_length is here --max_length"]),
        ("Option 'learnin_rate' is not accepted", ["--learnin_rate: is --learning_rate meant?"]),
        ("unrecognized arguments: --xyzzy 3 seed", []),
        ("--max_length 1: has to be at least 2", []),
    ],
)
def test_a_hint_for_each_that_is_nearly_one(message: str, said: list[str]) -> None:
    assert hints(message, NAMES) == said


@pytest.mark.parametrize("in_file", [False, True])
def test_a_recipe_says_it_in_three_lines(in_file: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("num_train_epochs: 3\n")
    with pytest.raises(SystemExit) as ended:
        main(["--config", str(file)] if in_file else ["--num_train_epochs", "3"])
    assert ended.value.code == 2
    error, hint, tip = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert hint == "--num_train_epochs is here --num_epochs"
    assert "--help" in tip
