"""Several ranks in one process: a thread each, which meet at a barrier in every collective."""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class ThreadRanks:
    """One rank of several, as `Ranks` asks for; counts its collectives, those apart from it too."""

    def __init__(self, index: int, board: list[Any], barrier: threading.Barrier) -> None:
        self.index = index
        self.count = len(board)
        self.num_exchanges = 0
        self.received: list[Any] = []
        """Moved here by `exchange`."""
        self._counter = self
        self._board = board
        self._barrier = barrier

    def gather(self, numbers: Sequence[int]) -> list[list[int]]:
        assert all(-(2**63) <= number < 2**63 for number in numbers)
        everyone = self.gather_objects(list(numbers))
        assert len({len(numbers) for numbers in everyone}) == 1, "ranks passed different counts of numbers"
        return everyone

    def gather_objects(self, value: T) -> list[T]:
        self._counter.num_exchanges += 1
        return self._meet(value)

    def _meet(self, value: T) -> list[T]:
        self._board[self.index] = value
        self._barrier.wait(timeout=60)
        everyone = list(self._board)
        self._barrier.wait(timeout=60)
        return everyone

    def exchange(self, outgoing: Mapping[int, T], sources: Sequence[int]) -> dict[int, T]:
        sent = self._meet(dict(outgoing))
        assert {rank for rank, of_rank in enumerate(sent) if self.index in of_rank} == set(sources)
        received = {rank: sent[rank][self.index] for rank in sources}
        self._counter.received += received.values()
        return received

    def new_group(self) -> "ThreadRanks":
        """On a board and a barrier of their own, which the first rank makes."""
        mine = ([None] * self.count, threading.Barrier(self.count)) if self.index == 0 else None
        shared = self._meet(mine)[0]
        assert shared is not None
        ranks = ThreadRanks(self.index, *shared)
        ranks._counter = self._counter
        return ranks


def on_ranks(count: int, work: Callable[[ThreadRanks], T]) -> list[T | Exception]:
    """What `work` returns, or raises, on each rank."""
    board: list[Any] = [None] * count
    barrier = threading.Barrier(count)

    def one(index: int) -> T | Exception:
        try:
            return work(ThreadRanks(index, board, barrier))
        except Exception as error:
            return error  # ranks that go on alone run into the barrier's timeout

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def run_ranks(count: int, work: Callable[[ThreadRanks], T]) -> list[T]:
    """What `work` returns on each rank, which raises on none; a rank's own error is raised here."""
    outcomes = on_ranks(count, work)
    errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    assert not errors
    return outcomes  # type: ignore[return-value]
