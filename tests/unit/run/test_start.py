"""A run that starts: the folder and the model are looked at before any data is read."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hf_accum.config.recipe import RecipeConfig
from hf_accum.errors import UserError
from hf_accum.run.start import StartedRun


@pytest.fixture(autouse=True)
def reset(accelerator: object) -> None:
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def test_the_workload_is_planned_and_later_with_what_the_data_has_told(tmp_path: Path) -> None:
    asked: list[tuple[RecipeConfig, str]] = []

    def workload(config: RecipeConfig, precision: str) -> Any:
        asked.append((config, precision))
        return len(asked)

    config = RecipeConfig(output_dir=str(tmp_path / "run"))
    run = StartedRun(config, workload)
    assert (run.planned, run.ranks.count, run.precision, run.device.type) == (1, 1, "no", "cpu")
    assert run.folder == tmp_path / "run"
    assert not run.folder.exists()  # nothing of an earlier run is touched yet
    run.known(max_length=7)
    assert run.plan(replace(config, seed=5)) == 2
    assert asked == [(config, "no"), (replace(config, seed=5, max_length=7), "no")]


def test_a_folder_that_cannot_be_is_said_before_the_model_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")

    def workload(*_: Any) -> Any:
        raise AssertionError("looked at")

    with pytest.raises(UserError, match="has to be a folder, it is a file"):
        StartedRun(RecipeConfig(output_dir=str(tmp_path / "file")), workload)
