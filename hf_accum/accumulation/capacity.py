"""How many examples of each length fit in one micro-batch: a function of the length, as data.

The bytes that live at a given moment of a forward and backward are a polynomial of the number of examples n and
their length L: weights, n * L for activations, n * L^2 for attention. Which moment is the worst one changes with
both. So each moment of a trace is fitted by itself, exactly (there are as many traces as unknowns), and the peak
is the largest of them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from hf_accum.errors import UserError

_HIGHEST = 2  # power of the length
_OCTAVE = 2  # where memory ran out, lengths down to half of that one are corrected too
_PATIENCE = 64  # windows
_TIGHTENED = 0.97
_MOST_LENGTHS = 2048


@dataclass(frozen=True)
class Peak:
    """The peak bytes of a phase: the largest, over its moments, of a polynomial of examples and length.

    A row of `moments` has the factors of 1, x, x^2, n, n x, n x^2 for x = length / `unit_length` (fewer powers
    where fewer lengths were traced).
    """

    moments: tuple[tuple[float, ...], ...]
    unit_length: int
    single: "Peak | None" = None
    """Of a single example, which has no padding and may take other operations."""

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "Peak":
        """The inverse of `dataclasses.asdict`.

        Raises:
            KeyError, TypeError, ValueError: if the value is no such thing.
        """
        moments = tuple(tuple(map(float, row)) for row in value["moments"])
        single = value["single"]
        peak = Peak(moments, int(value["unit_length"]), None if single is None else Peak.from_json(single))
        widths = {len(row) for row in peak.moments}
        is_fitted = len(widths) == 1 and widths <= {2, 4, 6} and np.isfinite(peak.moments).all()
        if not is_fitted or peak.unit_length < 1:
            raise ValueError(f"{value}: no fitted peak")
        return peak

    @property
    def knows_lengths(self) -> bool:
        """Whether several were traced."""
        return len(self.moments[0]) > 2

    def bytes_at(self, num_examples: int, length: int) -> int:
        """Peak bytes of a micro-batch."""
        if num_examples == 1 and self.single is not None:
            return self.single.bytes_at(2, length)
        rows = np.asarray(self.moments)
        return round(float((rows @ _terms(num_examples, length / self.unit_length, rows.shape[1] // 2)).max()))

    def largest(self, length: int, budget_bytes: float, at_most: int) -> int:
        """The most examples, up to `at_most`, whose peak is within a budget; 0 if not even one is."""
        fits, too_many = 0, at_most + 1
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            if self.bytes_at(middle, length) <= budget_bytes:
                fits = middle
            else:
                too_many = middle
        return fits


@dataclass(frozen=True)
class Capacity:
    """The largest micro-batch for each length, up to `most` examples, which is what a window can hold on a rank.

    Without `peak` it is `most` at every length: a number that somebody gave. `budget_bytes` is what the fitted
    peak may reach: the device's limit, corrected by what real probes measured against their prediction. `at_least`
    examples ran at the longest length, and so fit at every one.
    """

    most: int
    peak: Peak | None = None
    budget_bytes: float = 0.0
    at_least: int = 1

    def __post_init__(self) -> None:
        """Check the value."""
        if self.most < 1:
            raise UserError(f"micro-batch size {self.most}: has to be at least 1")
        if not 1 <= self.at_least <= self.most:
            raise ValueError(f"at least {self.at_least} examples: has to be from 1 to {self.most}")

    def num_examples(self, length: int) -> int:
        """The most examples of at most this length in one micro-batch; at least 1."""
        if self.peak is None:
            return self.most
        return max(self.at_least, self.peak.largest(length, self.budget_bytes, self.most))

    def num_examples_of(self, length: int, most_tokens: int) -> int:
        """The same without gradients, up to so many tokens in any number of examples."""
        at_most = most_tokens // max(length, 1)
        if self.peak is not None and self.peak.knows_lengths:
            at_most = self.peak.largest(length, self.budget_bytes, at_most)
        return max(self.num_examples(length), at_most)

    def as_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        peak = None if self.peak is None else asdict(self.peak)
        return {"most": self.most, "peak": peak, "budget_bytes": self.budget_bytes, "at_least": self.at_least}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "Capacity":
        """The inverse of `as_json`.

        Raises:
            KeyError, TypeError, ValueError: if the value is no such thing.
        """
        peak = value["peak"]
        return Capacity(
            int(value["most"]),
            None if peak is None else Peak.from_json(peak),
            float(value["budget_bytes"]),
            int(value["at_least"]),
        )


@dataclass
class _Ceiling:
    """Memory ran out at `failed` examples of `length` tokens: up to `allowed` are tried instead, for now."""

    length: int
    failed: int
    allowed: int
    good: int = 0  # went through before `allowed` was raised
    patience: int = _PATIENCE
    num_clean_windows: int = 0

    def at(self, length: int) -> float:
        if length >= self.length:
            return self.allowed
        # Nearly as long ones are in the same case, and as many tokens of them need no more memory.
        return self.allowed * self.length // length if length * _OCTAVE > self.length else math.inf

    def covers(self, length: int) -> bool:
        return length * _OCTAVE > self.length and length < self.length * _OCTAVE


@dataclass
class WorkingCapacity:
    """A capacity as a run goes on: lowered where memory ran out, and raised again after enough clean windows."""

    tuned: Capacity
    most_tokens: int = 0
    """Without gradients: so many may go through at once, in any number of examples that fits."""
    version: int = field(default=0, init=False)
    """Another one whenever the numbers change."""
    _ceilings: list[_Ceiling] = field(default_factory=list)
    _tuned_at: dict[int, int] = field(default_factory=dict, init=False, repr=False)

    def num_examples(self, length: int) -> int:
        """The most examples of at most this length in one micro-batch, for now; at least 1."""
        if length not in self._tuned_at:
            self._tuned_at[length] = self.tuned.num_examples_of(length, self.most_tokens)
        return int(min([self._tuned_at[length], *(ceiling.at(length) for ceiling in list(self._ceilings))]))

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes."""
        return {"tuned": self.tuned.as_json(), "ceilings": [asdict(ceiling) for ceiling in self._ceilings]}

    def load_state_dict(self, value: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            KeyError, TypeError, ValueError: if the value is no such thing.
        """
        ceilings = [_Ceiling(**{name: int(number) for name, number in one.items()}) for one in value["ceilings"]]
        self.tuned = Capacity.from_json(value["tuned"])
        self._ceilings = ceilings
        self._tuned_at.clear()
        self.version += 1

    def out_of_memory(self, num_examples: int, length: int) -> None:
        """A micro-batch did not fit: allow half of it from that length on, or what was allowed before it grew."""
        self._lower(num_examples, length)
        self.version += 1  # at last, so that whoever sees it sees the numbers too

    def _lower(self, num_examples: int, length: int) -> None:
        for ceiling in self._ceilings:
            if ceiling.covers(length):
                ceiling.patience *= 2  # it had grown back too soon
                ceiling.allowed = ceiling.good if 0 < ceiling.good < num_examples else max(1, num_examples // 2)
                ceiling.good = 0
                ceiling.length = min(ceiling.length, length)
                ceiling.failed = num_examples
                ceiling.num_clean_windows = 0
                return
        self._ceilings.append(_Ceiling(length, num_examples, max(1, num_examples // 2)))

    def tighten(self) -> bool:
        """The allocator had to free memory and ask again, which is slow: let predicted peaks reach a little less.

        False where sizes were given, and nothing was predicted.
        """
        if self.tuned.peak is None:
            return False
        self.tuned = replace(self.tuned, budget_bytes=self.tuned.budget_bytes * _TIGHTENED, at_least=1)
        self._tuned_at.clear()
        self.version += 1
        return True

    def window_done(self) -> None:
        """A window went through. After enough of them try half way up to what failed, and in the end that too."""
        for ceiling in list(self._ceilings):
            ceiling.num_clean_windows += 1
            if ceiling.num_clean_windows < ceiling.patience:
                continue
            ceiling.num_clean_windows = 0
            self._raise(ceiling)
            self.version += 1

    def _raise(self, ceiling: _Ceiling) -> None:
        most = self.tuned.num_examples(ceiling.length)
        if ceiling.allowed >= most:
            self._ceilings.remove(ceiling)
            return
        if ceiling.allowed >= ceiling.failed:  # it fits now
            ceiling.failed = min(2 * ceiling.failed, most)
        ceiling.good = ceiling.allowed
        ceiling.allowed += max(1, (ceiling.failed - ceiling.allowed) // 2)


def halved(longest: int, shortest: int) -> list[int]:
    """The longest length, and halves of it down to the shortest: those that are shown."""
    lengths = [longest]
    while lengths[-1] // 2 >= shortest:
        lengths.append(lengths[-1] // 2)
    return lengths


def fit_peak(timelines: Mapping[tuple[int, int], Sequence[int]]) -> Peak:
    """Fit a phase from the live bytes of its moments, by (num_examples, length).

    Two numbers of examples at each of up to three lengths. If the traces do not have the same moments (the model
    chose other operations at another size) only their peaks are fitted.

    Raises:
        ValueError: if the traces are not two numbers of examples at each of one to three lengths.
    """
    points = list(timelines)
    lengths, numbers = {length for _, length in points}, {number for number, _ in points}
    if len(numbers) != 2 or not 1 <= len(lengths) <= _HIGHEST + 1 or len(points) != 2 * len(lengths):
        raise ValueError(f"traces at {points}: have to be two numbers of examples at each of one to three lengths")
    unit = max(lengths)
    if len({len(timeline) for timeline in timelines.values()}) == 1:
        measured = np.array([timelines[point] for point in points], dtype=np.float64)
    else:
        measured = np.array([[max(timelines[point])] for point in points], dtype=np.float64)
    design = np.array([_terms(number, length / unit, len(lengths)) for number, length in points])
    rows = np.unique(np.linalg.solve(design, measured).T.round(6) + 0.0, axis=0)  # no -0.0
    return Peak(tuple(map(tuple, _envelope(rows, unit).tolist())), unit)


def _terms(num_examples: float, x: float, num_powers: int) -> np.ndarray:
    powers = [x**power for power in range(num_powers)]
    return np.array([*powers, *(num_examples * power for power in powers)])


def _envelope(rows: np.ndarray, unit: int) -> np.ndarray:
    """The moments that are the worst one anywhere: at any number of examples, at any length (of very many, some)."""
    rows = _not_dominated(rows)
    num_powers = rows.shape[1] // 2
    lengths = (
        np.unique(np.linspace(1, unit, min(unit, _MOST_LENGTHS)).round()) if num_powers > 1 else np.array([unit])
    )
    kept: set[int] = set()
    for length in lengths:
        powers = (length / unit) ** np.arange(num_powers)
        kept |= _upper_lines(rows[:, num_powers:] @ powers, rows[:, :num_powers] @ powers)
    return rows[sorted(kept)]


def _not_dominated(rows: np.ndarray) -> np.ndarray:
    """The rows that no other is at least as great as everywhere; of equal ones one."""
    leading: list[np.ndarray] = []
    while len(rows):
        greatest = rows[rows.sum(axis=1).argmax()]  # which none of the others dominates
        leading.append(greatest)
        rows = rows[(rows > greatest).any(axis=1)]
    return np.array(leading)


def _upper_lines(slopes: np.ndarray, offsets: np.ndarray) -> set[int]:
    """Indices of the lines `offset + slope * n` that are the highest at some n >= 0."""
    hull: list[int] = []
    for index in np.lexsort((offsets, slopes)):
        while hull:
            last = hull[-1]
            if offsets[last] <= offsets[index]:  # and its slope is no greater
                hull.pop()
                continue
            if len(hull) == 1:
                break
            before = hull[-2]
            # The last line leads only between where it passes the one before and where the new one passes it.
            passes = (offsets[before] - offsets[last]) * (slopes[index] - slopes[last])
            is_passed = (offsets[last] - offsets[index]) * (slopes[last] - slopes[before])
            if is_passed > passes:
                break
            hull.pop()
        hull.append(int(index))
    return set(hull)
