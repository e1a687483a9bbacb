"""Which windows a run takes, when it saves and evaluates. Whole runs: tests/recipes/test_every_recipe.py."""

from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hf_accum.accumulation.capacity import Capacity, Peak, WorkingCapacity
from hf_accum.accumulation.splitting import Cutter
from hf_accum.config.recipe import RecipeConfig
from hf_accum.distributed.ranks import OneRank
from hf_accum.evaluation.run_over import LeftEarly
from hf_accum.run import training
from hf_accum.run.checkpoint import BestCheckpoint
from hf_accum.run.signals import StopRequest
from hf_accum.run.training import Training

LINE = Peak(((0.0, 0.0, 0.0, 16.0),), 16)


class Recorded(Training):
    """Of a model that is not there: what was done is noted with its step."""

    def __init__(
        self, num_steps: int, first: int = 0, accuracy: dict[int, float] | None = None, **flags: Any
    ) -> None:
        self.num_steps, self._step, self._accuracy = num_steps, first, accuracy or {}
        self._config = RecipeConfig(**flags)
        self._best = BestCheckpoint(self._config.best_metric)
        self._task: Any = None
        self.nonfinite: Any = SimpleNamespace(gave_up=None)
        self.scheduler: Any = SimpleNamespace(get_last_lr=lambda: [0.5])
        self.done: list[tuple[str, int]] = []
        self.left_at: set[int] = set()  # whose evaluations a signal comes in
        self._run: Any = SimpleNamespace(device=torch.device("cpu"), ranks=OneRank(), stop=StopRequest())
        self._state: Any = SimpleNamespace(owes_evaluation=False)
        self.capacity: Any = Cutter(WorkingCapacity(Capacity(64, LINE, 1000.0)))
        self._num_retries, self._said_retries = 0, False
        self._log: Any = SimpleNamespace(
            step=lambda window, norm, rate, allocator: self.done.append(("step", window.window.step)),
            flush=lambda: None,
            say=lambda text: self.done.append((text, self._step)),
            evaluation=lambda step, figures: self.done.append(("evaluated", step)),
        )
        steps = range(first + 1, 1000)
        self._windows: Any = (SimpleNamespace(window=SimpleNamespace(step=step)) for step in steps)

    def _evaluate(self, result: Path | None = None, stop: StopRequest | None = None) -> dict[str, Any]:
        assert stop is not None
        if self._step in self.left_at:
            stop._asked_by = 2
            raise LeftEarly
        return {"accuracy": self._accuracy.get(self._step, 0.0)}

    def _save(self) -> None:
        self.done.append(("saved", self._step))

    def train(self) -> Iterator[int]:
        for window in self.windows:
            self.step_done(window, 1.0)
            yield self._step


@pytest.mark.parametrize("first", [0, 3, 5])
def test_a_run_takes_windows_up_to_its_last_step_from_wherever_it_goes_on(first: int) -> None:
    assert list(Recorded(5, first).train()) == list(range(first + 1, 6))


def test_it_saves_and_evaluates_every_few_steps_and_the_last_one_is_left_to_the_end() -> None:
    run = Recorded(6, save_every=3, eval_every=2)
    assert list(run.train()) == [1, 2, 3, 4, 5, 6]
    assert [done for done in run.done if done[0] != "step"] == [("evaluated", 2), ("saved", 3), ("evaluated", 4)]


def test_an_evaluation_that_is_due_when_the_run_is_to_stop_is_left_to_the_run_that_goes_on() -> None:
    how: dict[str, Any] = {"eval_every": 2, "save_every": None, "best_metric": "accuracy"}
    run = Recorded(6, accuracy={4: 0.5}, **how)
    for step in run.train():
        if step == 3:
            run._run.stop._asked_by = 2
    assert [done for done in run.done if done[0] != "step"] == [("evaluated", 2), ("saved", 2)]
    assert run._step == 4
    on = Recorded(6, first=4, accuracy={4: 0.5}, **how)
    on._state = run._state
    assert list(on.train()) == [5, 6]
    assert on.done == [("evaluated", 4), ("saved", 4), ("step", 5), ("step", 6)]


def test_an_evaluation_that_is_left_is_made_by_the_run_that_goes_on() -> None:
    how: dict[str, Any] = {"eval_every": 2, "save_every": 2, "best_metric": "accuracy"}
    run = Recorded(6, accuracy={4: 0.5}, **how)
    run.left_at = {4}
    assert list(run.train()) == [1, 2, 3, 4]
    assert [done for done in run.done if done[0] != "step"] == [("evaluated", 2), ("saved", 2)]
    once_more = Recorded(6, first=4, accuracy={4: 0.5}, **how)
    once_more._state, once_more.left_at = run._state, {4}
    assert (list(once_more.train()), once_more.done) == ([], [])
    on = Recorded(6, first=4, accuracy={4: 0.5}, **how)
    on._state = once_more._state
    assert list(on.train()) == [5, 6]
    assert on.done == [("evaluated", 4), ("saved", 4), ("step", 5), ("step", 6)]


def test_what_is_better_is_saved_and_patience_ends_the_run() -> None:
    how: dict[str, Any] = {"eval_every": 1, "best_metric": "accuracy", "early_stopping_patience": 2}
    run = Recorded(9, accuracy={1: 0.5, 2: 0.4, 3: 0.6, 4: 0.6, 5: 0.1, 6: 0.9}, **how)
    assert list(run.train()) == [1, 2, 3, 4, 5]
    assert [step for name, step in run.done if name == "saved"] == [1, 3]


def test_a_window_at_which_the_check_gives_up_is_no_step() -> None:
    run = Recorded(9)
    for window in run.windows:
        if window.window.step == 4:
            run.nonfinite.gave_up = RuntimeError("not finite")
        run.step_done(window, 1.0)
    assert run.done == [("step", 1), ("step", 2), ("step", 3)]
    assert run._step == 3


def test_what_was_noted_of_the_devices_is_said_before_the_first_step() -> None:
    said: list[str] = []

    class Log(nullcontext[None]):
        def start(self, config: RecipeConfig, description: str) -> None:
            said.append(description)

        def say(self, text: str) -> None:
            said.append(text)

    run: Any = Recorded(1)
    run._contexts, run._log, run._description = ExitStack(), Log(), "model ..."
    run.nonfinite.close = lambda: None
    released: list[bool] = []
    claim = SimpleNamespace(release=lambda: released.append(True))
    run._run = SimpleNamespace(stop=nullcontext(), notes=["cuda:0 is full"], claim=claim)
    with run:
        assert said == ["model ...", "cuda:0 is full"]
        assert not released
    assert released == [True]


def test_where_the_allocator_strains_micro_batches_become_smaller_and_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Recorded(6)
    retries = iter([0, 1, 1, 1, 3, 3])
    monkeypatch.setattr(training, "reserved_and_retries", lambda device: (10**9, next(retries)))
    sizes = [run.capacity.capacity.num_examples(16) for _ in run.train()]
    assert run.capacity.capacity.tuned.budget_bytes == pytest.approx(1000 * 0.97**2)
    assert sizes[0] > sizes[1] == sizes[3] > sizes[4] == sizes[5]
    said = [(text, step) for text, step in run.done if "allocator" in text]
    assert [step for _, step in said] == [2]
