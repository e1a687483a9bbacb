"""A recipe as a command: its flags are read, and a failure ends with a message and a status."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from hf_accum.cli.command import command
from hf_accum.config.recipe import RecipeConfig
from hf_accum.errors import UserError


@dataclass(frozen=True, kw_only=True)
class MyConfig(RecipeConfig):
    """Flags."""

    times: int = 1
    """How often."""


def test_the_function_trains_with_the_flags_that_were_given() -> None:
    seen: list[MyConfig] = []
    command(MyConfig, seen.append, "Mine.")(["--times", "3", "--seed=7"])
    assert [(type(config), config.times, config.seed, config.num_epochs) for config in seen] == [(MyConfig, 3, 7, 1)]


def test_rows_are_shown_once_for_all_seeds() -> None:
    seen: list[MyConfig] = []
    command(MyConfig, seen.append, None)(["--num_seeds=3", "--preview", "--seed=7"])
    assert [(config.seed, config.num_seeds, config.preview) for config in seen] == [(7, 1, True)]


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError("`effective_batch_size` 3: has to be 4"), 2, "error: --effective_batch_size 3: has to be 4\n"),
        (ZeroDivisionError("by what"), 1, "error: ZeroDivisionError: by what (nothing that is checked for"),
    ],
)
def test_a_mistake_of_the_user_s_has_status_2_and_anything_else_1(
    error: Exception, status: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(config: MyConfig) -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        command(MyConfig, train, None)([f"--output_dir={tmp_path / 'run'}"])
    assert ended.value.code == status
    said = capsys.readouterr().err
    assert said.startswith(message)
    assert "Traceback" not in said


def test_a_wrong_flag_is_refused_before_the_training(capsys: pytest.CaptureFixture[str]) -> None:
    def train(config: MyConfig) -> None:
        raise AssertionError("trained")

    with pytest.raises(SystemExit) as ended:
        command(MyConfig, train, "Mine.")(["--seed", "many"])
    assert ended.value.code == 2
    assert "seed" in capsys.readouterr().err
