"""The evaluations of a run: calibrated on a part of their own, on a sample, and how long they are said to take."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from hf_accum.accumulation.capacity import Capacity, WorkingCapacity
from hf_accum.accumulation.example import Example
from hf_accum.accumulation.splitting import Cutter
from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.held_out import by_hash
from hf_accum.data.source import Source
from hf_accum.data.split import SplitData
from hf_accum.distributed.ranks import OneRank
from hf_accum.run.evaluation import Evaluation

ROWS = [{"x": number, "patient": number // 2} for number in range(200)]
CUTTER = Cutter(WorkingCapacity(Capacity(8)))


class Recording:
    """A task that notes which rows it is given, for what."""

    def __init__(self) -> None:
        self.seen: dict[str, list[int]] = {}
        self.groups: list[int | None] = []

    def prepare(self, row: Any) -> int:
        return row["x"]

    def encode(self, rows: Any) -> list[Example]:
        return [Example(name, 1, 1.0, {"x": x}) for name, x in rows]

    def calibrate(self, model: nn.Module, part: Any, **_: Any) -> "Recording":
        self._take("calibration", part)
        return self

    def evaluate(self, model: nn.Module, held_out: Any, *, folder: Path | None = None, **_: Any) -> dict[str, Any]:
        self._take("held out", held_out)
        return {"calibration": {"reliability": [], "temperature": 2.0}, "notes": [], "folder": folder}

    def show(self, example: Example) -> dict[str, Any]:
        return {}

    def _take(self, what: str, stream: Any) -> None:
        examples = [example for window in stream for example in window.examples]
        self.seen[what] = [example.features["x"] for example in examples]
        self.groups = [example.origin.group for example in examples]


def make(tmp_path: Path, fraction: float = 0.3, **flags: Any) -> tuple[Evaluation, Recording, SplitData, list[str]]:
    source = Source(("rows",), lambda shard, start: iter(list(enumerate(ROWS))[start:]), {})
    data = SplitData(
        source=source,
        eval_source=source,
        group_column="patient",
        eval_fraction=0.2,
        held_out=by_hash(0.2),
        calibration_fraction=fraction,
        num_held_out=1_000,
        num_calibration=500,
    )
    run: Any = SimpleNamespace(ranks=OneRank(), notes=[], folder=tmp_path)
    task: Any = Recording()
    return Evaluation(run, RecipeConfig(**flags), data, task, None), task, data, run.notes


def test_three_parts_by_groups_of_which_no_row_is_in_two(tmp_path: Path) -> None:
    evaluation, task, data, _ = make(tmp_path)
    figures = evaluation.figures(nn.Linear(1, 1), CUTTER)
    assert figures["folder"] is None
    trained = [row["x"] for row in ROWS if data.is_to_train_on(row)]
    parts = [trained, task.seen["calibration"], task.seen["held out"]]
    assert sorted(x for part in parts for x in part) == list(range(200))
    groups = [{x // 2 for x in part} for part in parts]
    assert sum(map(len, groups)) == 100
    assert [round(len(part) / 200, 1) for part in groups] == pytest.approx([0.3, 0.1, 0.1], abs=0.1)
    assert len(set(task.groups)) == len(groups[2])  # the held-out rows of one patient have one group
    seen = dict(task.seen)
    again, task, _, _ = make(tmp_path, seed=5)
    again.figures(nn.Linear(1, 1), CUTTER)
    assert task.seen == seen


def test_the_result_has_what_was_fitted(tmp_path: Path) -> None:
    evaluation, _, _, _ = make(tmp_path)
    result = tmp_path / "adapter"
    result.mkdir()
    figures = evaluation.figures(nn.Linear(1, 1), CUTTER, result)
    assert json.loads((result / "calibration.json").read_text()) == {"temperature": 2.0}
    assert (figures["folder"], figures["notes"]) == (tmp_path, ["to predict with: adapter/calibration.json"])
    plain, task, _, _ = make(tmp_path, fraction=0.0)
    (result / "calibration.json").unlink()
    plain.figures(nn.Linear(1, 1), CUTTER, result)
    assert not (result / "calibration.json").exists()
    assert list(task.seen) == ["held out"]


def test_a_sample_is_said_and_always_the_same(tmp_path: Path) -> None:
    evaluation, task, _, notes = make(tmp_path, max_eval_examples=7)
    evaluation.figures(torch.nn.Linear(1, 1), CUTTER)
    first = task.seen["held out"]
    assert len(first) == 7
    assert "evaluations are on 7 of " in notes[0]
    evaluation.figures(torch.nn.Linear(1, 1), CUTTER)
    assert task.seen["held out"] == first
    _, _, _, notes = make(tmp_path, max_eval_examples=190)
    assert notes == []


def test_a_long_evaluation_is_said_before(tmp_path: Path) -> None:
    evaluation, _, _, _ = make(tmp_path)
    assert evaluation.expected(None) is None
    assert evaluation.expected(0.01) is None
    said = evaluation.expected(0.2)  # 1,500 examples, half of the time of a step each
    assert said is not None
    assert said.startswith("evaluation of 1,500 examples: about 0:02:30, by the speed of training; `max_eval")
    evaluation.figures(nn.Linear(1, 1), CUTTER)
    assert evaluation.expected(10.0) is None  # the last one took no time
