"""A run's trackers: one that does not start ends the run before it begins, one that fails later does not."""

from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from thread_ranks import run_ranks

from hf_accum.config.recipe import RecipeConfig
from hf_accum.distributed.ranks import OneRank, Ranks
from hf_accum.errors import RankFailed, UserError
from hf_accum.run.trackers import Trackers


class Kept(GeneralTracker):
    """Keeps what it is given; fails in the call that it is told."""

    name = "kept"  # type: ignore[assignment] (accelerate reads it so)
    requires_logging_directory = False
    tracker = None  # type: ignore[assignment]

    def __init__(self, fails_in: str = "") -> None:
        super().__init__(_blank=True)
        self.fails_in, self.calls, self.config = fails_in, [], {}  # type: ignore[var-annotated]

    def _called(self, call: str) -> None:
        self.calls.append(call)
        if call == self.fails_in:
            raise OSError("No space left on device")

    def start(self) -> None:
        self._called("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._called("config")
        self.config = values

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self._called(f"log {step} {values}")

    def finish(self) -> None:
        self._called("finish")


def trackers_of(accelerator: Accelerator, *kept: Kept, ranks: Ranks | None = None) -> tuple[Trackers, list[str]]:
    said: list[str] = []
    wanted: Any = [*kept]
    accelerator.log_with = wanted
    return Trackers(accelerator, ranks or OneRank(), said.append), said


def test_they_get_the_configuration_as_single_values_and_each_figure(accelerator: Accelerator) -> None:
    one, other = Kept(), Kept()
    trackers, said = trackers_of(accelerator, one, other)
    trackers.start(RecipeConfig(seed=3))
    trackers.log({"loss": 0.5}, 7)
    trackers.end()
    assert (one.config["seed"], one.config["lora.rank"], one.config["lora.target_modules"]) == (3, 16, "all-linear")
    assert all(isinstance(value, int | float | str | bool) for value in one.config.values())
    assert one.calls == other.calls == ["start", "config", "log 7 {'loss': 0.5}", "finish"]
    assert said == accelerator.trackers == []


@pytest.mark.parametrize("call", ["start", "config"])
def test_one_that_does_not_start_is_a_mistake_and_the_others_are_ended(accelerator: Accelerator, call: str) -> None:
    first, bad, last = Kept(), Kept(call), Kept()
    trackers, _ = trackers_of(accelerator, first, bad, last)
    with pytest.raises(UserError, match=r"`trackers` .*: does not start \(OSError: No space left on device\)"):
        trackers.start(RecipeConfig())
    assert first.calls == ["start", "config", "finish"]
    assert last.calls == []


def test_the_other_ranks_end_too(accelerator: Accelerator) -> None:
    def start(ranks: Ranks) -> Any:
        mine: Any = SimpleNamespace(log_with=[], trackers=[]) if ranks.index else accelerator
        if not ranks.index:
            mine.log_with = [Kept("start")]
        try:
            Trackers(mine, ranks, print).start(RecipeConfig())
        except Exception as error:
            return type(error)
        return None

    assert run_ranks(2, start) == [UserError, RankFailed]


def test_one_that_fails_later_is_left_out_and_said_once(accelerator: Accelerator) -> None:
    failing, good, stuck = Kept("log 1 {'loss': 1}"), Kept(), Kept("finish")
    trackers, said = trackers_of(accelerator, failing, good, stuck)
    trackers.start(RecipeConfig())
    for step in (1, 2):
        trackers.log({"loss": 1}, step)
    trackers.end()
    assert failing.calls == ["start", "config", "log 1 {'loss': 1}"]
    assert good.calls == ["start", "config", "log 1 {'loss': 1}", "log 2 {'loss': 1}", "finish"]
    assert said == [
        "tracker kept failed and is left out from here on: OSError: No space left on device",
        "tracker kept could not be ended: OSError: No space left on device",
    ]
