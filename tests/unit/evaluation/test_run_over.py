"""A pass over held-out examples that is to stop: all ranks leave it together, from wherever they are."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from thread_ranks import ThreadRanks, run_ranks

from hf_accum.accumulation.capacity import Capacity, WorkingCapacity
from hf_accum.accumulation.example import Example
from hf_accum.accumulation.splitting import Cutter
from hf_accum.accumulation.time_model import WorkingCosts
from hf_accum.data.source import Source
from hf_accum.data.stream import Split, WindowStream
from hf_accum.evaluation import run_over as module
from hf_accum.evaluation.run_over import LeftEarly, run_over

NUM_ROWS, AT_ONCE, BATCH = 96, 8, 2


def make_stream(ranks: ThreadRanks, split: Split, stopping: Any) -> WindowStream[Any]:
    rows: list[tuple[int, dict[str, Any]]] = [(number, {"x": number}) for number in range(NUM_ROWS // 4)]
    names = tuple(map(str, range(4)))
    return WindowStream(
        Source(names, lambda shard, start: iter(rows[start:]), {}),
        lambda row: row["x"],
        lambda items: [Example(name, 4, 1.0, {}, 0) for name, _ in items],
        ranks=ranks,
        effective_batch_size=AT_ONCE * ranks.count,
        seed=0,
        split=split,
        shuffle_block_size=1,
        stopping=stopping,
    )


def outcome(ranks: ThreadRanks, split: Split, stops_at: int | None, whole: bool = False) -> tuple[str, int]:
    """What became of the pass, and how many batches this rank computed; rank 1 is asked to stop in one of them."""
    num_batches = 0

    def forward(examples: Sequence[Example], length: int) -> int:
        nonlocal num_batches
        num_batches += 1
        return len(examples)

    def is_asked() -> bool:
        return ranks.index == 1 and stops_at is not None and num_batches >= stops_at

    stream = make_stream(ranks, split, is_asked)
    cutter = Cutter(WorkingCapacity(Capacity(BATCH)))
    model = torch.nn.Linear(1, 1).train()
    join = (lambda examples, results: sum(results)) if whole else None
    try:
        results, weight = run_over(model, stream, forward, cutter, join)
    except LeftEarly:
        return "left", num_batches
    finally:
        assert model.training
        assert ranks.gather([1]) == [[1]] * ranks.count  # all can still talk, at the same place
    assert weight == NUM_ROWS
    assert sum(total for (total,) in ranks.gather([sum(results)])) == NUM_ROWS
    return "through", num_batches


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("split", ["examples", "shards"])
@pytest.mark.parametrize("stops_at", [1, 3, 4, 12])
def test_all_ranks_leave_when_one_is_asked_to(stops_at: int, split: Split, whole: bool) -> None:
    """In the first batch, within a window (of 4 batches), at its end, and within the last window."""
    found = run_ranks(4, lambda ranks: outcome(ranks, split, stops_at, whole))
    assert [what for what, _ in found] == ["left"] * 4
    assert found[1][1] == stops_at  # at once, where it is known
    of_window = AT_ONCE // BATCH
    assert all(number <= of_window * -(-stops_at // of_window) for _, number in found)  # no further window


@pytest.mark.parametrize("split", ["examples", "shards"])
def test_a_pass_that_nobody_stops_or_that_is_through_by_then_has_all(split: Split) -> None:
    assert [what for what, _ in run_ranks(4, lambda ranks: outcome(ranks, split, None))] == ["through"] * 4


class AlwaysASecond:
    """A stopwatch on a device that takes as long for one example as for many."""

    @staticmethod
    def on(device: torch.device) -> "AlwaysASecond":
        return AlwaysASecond()

    def stop(self) -> None:
        """It has been queued."""

    def read(self) -> float:
        return 1.0


def test_what_forwards_take_is_learned_of_them_and_not_by_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Stopwatch", AlwaysASecond)
    sizes: list[int] = []

    def forward(examples: Sequence[Example], length: int) -> int:
        sizes.append(len(examples))
        return len(examples)

    cutter = Cutter(WorkingCapacity(Capacity(AT_ONCE)), WorkingCosts())
    before = cutter.state_dict()
    stream = run_ranks(1, lambda ranks: make_stream(ranks, "examples", None))[0]
    results, _ = run_over(torch.nn.Linear(1, 1), stream, forward, cutter)
    assert sum(results) == NUM_ROWS
    assert sizes[:4] == [1, 2, 4, 1]  # tried
    assert sizes[4:] == [AT_ONCE] * (NUM_ROWS // AT_ONCE - 1)  # as there is no faster way
    assert cutter.state_dict() == before
