"""Cutting a window's examples into micro-batches: within what fits, the fastest by the predicted times."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Protocol, TypeVar

import numpy as np

from hf_accum.accumulation.capacity import Capacity, WorkingCapacity
from hf_accum.accumulation.example import OF_ONES_OWN, TOKENS, Lengths
from hf_accum.accumulation.time_model import SIZES, UNLEARNED, Costs, Speed, WorkingCosts
from hf_accum.errors import UserError

PADDED_ON_CARDS = 8
"""Tensor cores work on eights: what lengths are padded to a multiple of, on an accelerator."""


class Sized(Protocol):
    """Something with a length, and an id that tells it from the others."""

    @property
    def id(self) -> str:
        """Its name."""
        ...

    @property
    def length(self) -> int:
        """In tokens."""
        ...


S = TypeVar("S", bound=Sized)


@dataclass
class Cutter:
    """How one rank cuts its windows, for now: what fits (`capacity`), what is fastest (`costs`), what is padded.

    Without `costs` micro-batches are as large as fits. Lengths are padded to a multiple of `multiple_of` tokens, but
    to no more than `max_length`.
    """

    capacity: WorkingCapacity
    costs: WorkingCosts | None = None
    multiple_of: int = 1
    max_length: int | None = None
    device: str = ""
    """Its kind: what it is called."""
    lengths: Lengths = TOKENS
    """For messages."""

    @classmethod
    def of(cls, capacity: "Cutter | WorkingCapacity | int") -> "Cutter":
        """The cutter itself, or one that cuts by a capacity or a number alone: the most examples of one forward."""
        if isinstance(capacity, Cutter):
            return capacity
        working = WorkingCapacity(Capacity(capacity)) if isinstance(capacity, int) else capacity
        return cls(working, lengths=OF_ONES_OWN)

    @property
    def version(self) -> tuple[int, int]:
        """As long as it is the same, so is every cut."""
        return self.capacity.version, 0 if self.costs is None else self.costs.version

    def padded(self, length: int) -> int:
        """The length of a micro-batch whose longest example has this one."""
        padded = -(-length // self.multiple_of) * self.multiple_of
        return padded if self.max_length is None else max(length, min(padded, self.max_length))

    def cut(self, examples: Sequence[S]) -> list[tuple[S, ...]]:
        """The micro-batches of one window on this rank."""
        if self.costs is None:
            return cut(examples, self.capacity.num_examples, None, self.padded)
        if self.costs.explores:
            return explore(examples, self.capacity.num_examples, self.padded)
        return cut(examples, self.capacity.num_examples, self.costs.costs, self.padded)

    def for_forwards(self) -> "Cutter":
        """One for a pass without gradients: it begins with what this one knows, and keeps to itself what it learns.

        As many tokens as fit of the longest examples go through at once of shorter ones, where they fit too.
        """
        tuned, tokens = self.capacity.tuned, 0
        if tuned.peak is not None and self.max_length is not None:
            tokens = tuned.num_examples(self.max_length) * self.max_length
        costs = None if self.costs is None else self.costs.for_forwards()
        return replace(self, capacity=WorkingCapacity(tuned, tokens), costs=costs)

    def speed_at_step(self, step: int) -> Speed:
        """For what is decided ahead of the device, and so has to be the same whatever has been measured meanwhile."""
        most = tuple(self.capacity.tuned.num_examples(length) for length in SIZES)
        return Speed(self.device, UNLEARNED if self.costs is None else self.costs.at_step(step), most)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes: what decides how windows are cut."""
        costs = None if self.costs is None else self.costs.state_dict()
        return {"capacity": self.capacity.state_dict(), "costs": costs}

    def load_state_dict(self, value: Mapping[str, Any]) -> None:
        """Cut as the cutter did whose state this is: of this rank, on such a device.

        accelerate's `register_for_checkpointing` keeps the state of rank 0 alone. Where ranks have different devices,
        save each one's own.

        Raises:
            KeyError, TypeError, ValueError: if the value is no such thing.
        """
        self.capacity.load_state_dict(value["capacity"])
        if self.costs is not None and value["costs"] is not None:
            self.costs.load_state_dict(value["costs"])

    def window_done(self) -> None:
        """A window went through."""
        self.capacity.window_done()
        if self.costs is not None:
            self.costs.window_done()


def cut(
    examples: Sequence[S],
    most: int | Callable[[int], int],
    costs: Costs | None = None,
    padded: Callable[[int], int] = lambda length: length,
) -> list[tuple[S, ...]]:
    """Cut examples into micro-batches of at most `most` each: a number, or one for each (padded) length.

    Sorted by length, so that little is padded. With `costs` the cut is the one of the least predicted time, found by
    dynamic programming over where each micro-batch begins (of contiguous groups of the sorted examples no other is
    faster); the most expensive comes first, and the cheapest last, since at its end the ranks wait for each other.
    Without them each micro-batch is as large as allowed, longest examples first. The result depends on the examples
    only, not on their order.

    Raises:
        UserError: for a size below 1.
    """
    ordered, lengths = _sorted(examples, padded)

    def limit(length: int) -> int:
        size = most if isinstance(most, int) else most(length)
        if size < 1:
            raise UserError(f"micro-batch size {size}: has to be at least 1")
        return size

    starts = _largest(lengths, limit) if costs is None else _fastest(lengths, limit, costs)
    pieces = [tuple(ordered[start:end]) for start, end in itertools.pairwise([*starts, len(ordered)])]
    if costs is None:
        return pieces
    # Equal ones stay in their order: longest first.
    seconds = [-float(costs.seconds(len(piece), padded(piece[0].length))) for piece in pieces]
    return [pieces[index] for index in np.argsort(seconds, kind="stable")]


def explore(
    examples: Sequence[S], most: Callable[[int], int], padded: Callable[[int], int] = lambda length: length
) -> list[tuple[S, ...]]:
    """Cut examples into micro-batches of 1, 2, 4, 8, ... of them, longest first, as far as `most` allows, and again.

    So the times of one window tell what a micro-batch costs from what its examples do: few long, many short ones.
    """
    ordered, lengths = _sorted(examples, padded)
    pieces = []
    start, size = 0, 1
    while start < len(ordered):
        limit = most(lengths[start])
        pieces.append(tuple(ordered[start : start + min(size, limit)]))
        start += len(pieces[-1])
        size = 1 if size >= limit else 2 * size
    return pieces


def _sorted(examples: Sequence[S], padded: Callable[[int], int]) -> tuple[list[S], list[int]]:
    """Longest first, equally long ones by their id; and their lengths when each is the longest of its micro-batch."""
    ordered = sorted(examples, key=lambda example: (-example.length, example.id))
    return ordered, [padded(example.length) for example in ordered]


def _largest(lengths: Sequence[int], most: Callable[[int], int]) -> list[int]:
    """Where micro-batches begin that are as large as allowed."""
    starts = []
    start = 0
    while start < len(lengths):
        starts.append(start)
        start += most(lengths[start])
    return starts


def _fastest(lengths: Sequence[int], most: Callable[[int], int], costs: Costs) -> list[int]:
    """Where the micro-batches of the least total time begin, of examples from the longest to the shortest."""
    count = len(lengths)

    @cache
    def seconds_at(length: int) -> np.ndarray:
        return costs.seconds(np.arange(1, min(most(length), count) + 1), length)

    best = least_seconds(lengths, seconds_at)
    starts = [count]
    while (end := starts[-1]) > 0:  # back along the sums that are the best ones
        start = end - 1
        while end - start > len(at := seconds_at(lengths[start])) or at[end - start - 1] + best[start] != best[end]:
            start -= 1
        starts.append(start)
    return starts[:0:-1]


def least_seconds(lengths: Iterable[int], seconds_at: Callable[[int], np.ndarray]) -> np.ndarray:
    """The least time for the first 0, 1, 2, ... examples, which go from the longest to the shortest.

    By dynamic programming over where each micro-batch begins; `seconds_at` a length are those of micro-batches of 1,
    2, ... examples padded to it, as many as fit.
    """
    lengths = list(lengths)
    best = np.full(len(lengths) + 1, np.inf)
    best[0] = 0.0
    for start, length in enumerate(lengths):
        seconds = seconds_at(length)
        reached = best[start + 1 : start + 1 + len(seconds)]
        np.minimum(reached, seconds[: len(reached)] + best[start], out=reached)
    return best
