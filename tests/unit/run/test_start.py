"""A run that starts: the folder and the model are looked at before any data is read."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hf_accum.config.recipe import RecipeConfig
from hf_accum.device import free_memory
from hf_accum.distributed.launch import keeping_processes
from hf_accum.errors import UserError
from hf_accum.run import start
from hf_accum.run.start import StartedRun


@pytest.fixture(autouse=True)
def reset(accelerator: object) -> None:
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def test_the_workload_is_planned_and_later_with_other_flags(tmp_path: Path) -> None:
    asked: list[tuple[RecipeConfig, str]] = []

    def workload(config: RecipeConfig, precision: str) -> Any:
        asked.append((config, precision))
        return len(asked)

    config = RecipeConfig(output_dir=str(tmp_path / "run"))
    run = StartedRun(config, workload)
    assert (run.planned, run.ranks.count, run.precision, run.device.type) == (1, 1, "no", "cpu")
    assert run.folder == tmp_path / "run"
    assert not run.folder.exists()  # nothing of an earlier run is touched yet
    assert run.plan(replace(config, seed=5)) == 2
    assert asked == [(config, "no"), (replace(config, seed=5), "no")]


def test_a_folder_that_cannot_be_is_said_before_the_model_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")

    def workload(*_: Any) -> Any:
        raise AssertionError("looked at")

    with pytest.raises(UserError, match="has to be a folder, it is a file"):
        StartedRun(RecipeConfig(output_dir=str(tmp_path / "file")), workload)


def test_threads_without_cores_are_spoken_of_before_anything_else_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(start, "check_cores", lambda num_threads, num_processes: "slow: 4 threads")

    def workload(*_: Any) -> Any:
        assert capsys.readouterr().err == "slow: 4 threads\n"

    run = StartedRun(RecipeConfig(output_dir=str(tmp_path / "run")), workload)
    assert (run.told, run.notes) == (["slow: 4 threads"], [])  # the log does not say it once more
    StartedRun(RecipeConfig(output_dir=str(tmp_path / "run"), preview=True), lambda *_: None)  # type: ignore[arg-type]
    assert capsys.readouterr().err == ""


def test_of_several_runs_in_a_process_the_first_speaks_of_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = (f"slow: {free} of 2 cores are free" for free in (0.1, 0.2, 0.3, 0.4))
    monkeypatch.setattr(start, "check_cores", lambda *_: next(notes))

    def told_of(name: str) -> list[str]:
        return StartedRun(RecipeConfig(output_dir=str(tmp_path / name)), lambda *_: None).told  # type: ignore[arg-type]

    with keeping_processes():
        assert (told_of("a"), told_of("b")) == (["slow: 0.1 of 2 cores are free"], ["slow: 0.2 of 2 cores are free"])
    assert capsys.readouterr().err == "slow: 0.1 of 2 cores are free\n"
    for name in ("c", "d"):
        told_of(name)
    assert capsys.readouterr().err == "slow: 0.3 of 2 cores are free\nslow: 0.4 of 2 cores are free\n"


@pytest.fixture
def on_full_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 12 GiB, 3 of which others have left."""
    accelerator = SimpleNamespace(mixed_precision="no", device=torch.device("cuda", 0), num_processes=1)
    monkeypatch.setattr(start, "start_accelerator", lambda **_: accelerator)
    monkeypatch.setattr(free_memory, "available_bytes", lambda device: (3 * 2**30, 12 * 2**30))


def of_gib(number: int) -> Any:
    """A workload whose weights would take so much."""
    model = torch.nn.Linear(2**14, number * 2**14, bias=False, device="meta")
    return lambda config, precision: SimpleNamespace(model=model)


@pytest.mark.usefixtures("on_full_card")
def test_a_card_that_others_fill_is_spoken_of_before_data_and_weights_are_read(tmp_path: Path) -> None:
    config = RecipeConfig(output_dir=str(tmp_path / "run"))
    (note,) = StartedRun(config, of_gib(2)).notes
    assert "3.00 GiB are free for this run" in note
    with pytest.raises(UserError, match=r"the weights of the model alone take 4\.00 GiB"):
        StartedRun(replace(config, output_dir=str(tmp_path / "larger")), of_gib(4))
    with pytest.raises(UserError, match=r"`memory_budget` 6\.00 GiB: .* 3\.00 GiB are free"):
        StartedRun(replace(config, output_dir=str(tmp_path / "budget"), memory_budget="6GiB"), of_gib(2))
