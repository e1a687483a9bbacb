"""Several ranks in one process: a thread each, which meet at a barrier in every collective."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class ThreadRanks:
    """One rank of several, as `hf_accum.ranks.Ranks` asks for; counts its collectives."""

    def __init__(self, index: int, board: list[Any], barrier: threading.Barrier) -> None:
        self.index = index
        self.count = len(board)
        self.num_exchanges = 0
        self._board = board
        self._barrier = barrier

    def gather(self, numbers: Sequence[int]) -> list[list[int]]:
        assert all(-(2**63) <= number < 2**63 for number in numbers)
        everyone = self.gather_objects(list(numbers))
        assert len({len(numbers) for numbers in everyone}) == 1, "ranks passed different counts of numbers"
        return everyone

    def gather_objects(self, value: T) -> list[T]:
        self.num_exchanges += 1
        self._board[self.index] = value
        self._barrier.wait(timeout=10)
        everyone = list(self._board)
        self._barrier.wait(timeout=10)
        return everyone


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
