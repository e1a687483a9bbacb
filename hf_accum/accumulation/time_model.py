"""How long a micro-batch takes: predicted from its size, learned from the run's own without waiting for the device.

The seconds of n examples padded to L tokens are taken for

    micro_batch + token * n L + square * n L^2 + sum over k of  beyond_k * max(0, n L - KNOTS_k)

with no negative coefficient: what any micro-batch costs, the layers, the attention, and what a device loses on sizes
that go beyond its caches. They are fitted by non-negative least squares of the relative errors (Lawson and Hanson,
Solving Least Squares Problems, 1974, chapter 23), reweighted so that single slow micro-batches count little (Huber,
Robust Statistics, 1981, chapter 7).
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from hf_accum.distributed.ranks import bits_float, float_bits

SIZES = tuple(2**power for power in range(3, 16))
KNOTS = (256, 512, 1024, 2048, 4096, 8192, 16384)
_MOST_OBSERVATIONS = 512
_LAST_UPDATE = 64  # windows
_NUM_EXPLORED = 2  # windows, of an accelerator
_PRIOR_WEIGHT = 1e-3
_FASTEST = 5  # times as fast as what is no larger: that was not measured well
_LEAST_SECONDS = 1e-9
_TOLERANCE = 0.1  # relative errors up to here are noise
_NUM_REWEIGHTINGS = 8


@dataclass(frozen=True)
class Costs:
    """The coefficients of the predicted seconds."""

    micro_batch: float
    token: float
    square: float
    beyond: tuple[float, ...] = (0.0,) * len(KNOTS)

    def seconds(self, num_examples: np.ndarray | int, length: np.ndarray | int) -> np.ndarray:
        """Predicted seconds of micro-batches; the arguments are broadcast."""
        tokens = np.multiply(num_examples, length, dtype=float)
        seconds = self.micro_batch + (self.token + self.square * np.asarray(length, dtype=float)) * tokens
        for knot, rise in zip(KNOTS, self.beyond, strict=True):
            if rise:
                seconds = seconds + rise * np.maximum(0.0, tokens - knot)
        return seconds

    @property
    def coefficients(self) -> tuple[float, ...]:
        """All of them, in order."""
        return (self.micro_batch, self.token, self.square, *self.beyond)

    @staticmethod
    def of(coefficients: Iterable[float]) -> "Costs":
        """The inverse of `coefficients`."""
        micro_batch, token, square, *beyond = coefficients
        return Costs(micro_batch, token, square, tuple(beyond))

    def as_numbers(self) -> list[int]:
        """For `Ranks.gather`."""
        return [float_bits(number) for number in self.coefficients]

    @staticmethod
    def from_numbers(numbers: Sequence[int]) -> "Costs":
        """The inverse of `as_numbers`."""
        return Costs.of(map(bits_float, numbers))

    def as_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return asdict(self) | {"knots": list(KNOTS)}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "Costs":
        """The inverse of `as_json`.

        Raises:
            KeyError, TypeError, ValueError: if the value is no such thing.
        """
        costs = Costs(
            float(value["micro_batch"]),
            float(value["token"]),
            float(value["square"]),
            tuple(map(float, value["beyond"])),
        )
        numbers = costs.coefficients
        if tuple(value["knots"]) != KNOTS or len(costs.beyond) != len(KNOTS):
            raise ValueError(f"{value}: of other knots than {KNOTS}")
        if not all(0 <= number < np.inf for number in numbers) or sum(numbers) == 0:
            raise ValueError(f"{value}: no costs")
        return costs


@dataclass(frozen=True)
class Speed:
    """How long micro-batches take on a rank, and on what kind of device: others may have the same.

    `most` are the examples that fit at once, of at most each of `SIZES` tokens.
    """

    device: str
    costs: Costs
    most: tuple[int, ...] = ()


UNLEARNED = Costs(micro_batch=64e-6, token=1e-6, square=1e-9)
"""Before anything was measured. Only ratios matter: what a micro-batch costs is as much as 64 tokens of it."""


def mean_costs(several: Sequence[Costs]) -> Costs:
    """Those that predict the mean of what several predict."""
    return Costs.of(np.array([one.coefficients for one in several]).mean(axis=0).tolist())


@dataclass(frozen=True)
class Observation:
    """A micro-batch that took so long."""

    num_examples: int
    length: int
    seconds: float


class Timing(Protocol):
    """The time of a micro-batch on its device, which may not have come to its end."""

    def read(self) -> float | None:
        """Seconds, or None while they are not known."""
        ...


def fit_costs(observations: Sequence[Observation]) -> Costs:
    """The costs that predict the observations best, in the median sense; of none, `UNLEARNED`.

    Sizes that were not observed are drawn, by a little, to the proportions of `UNLEARNED`; larger ones than any that
    was go on as the observed ones do.
    """
    from scipy.optimize import nnls

    seen = [o for o in observations if _LEAST_SECONDS <= o.seconds < np.inf]
    if not seen:
        return UNLEARNED
    numbers, lengths, seconds = (
        np.array([getattr(o, name) for o in seen], dtype=float) for name in ("num_examples", "length", "seconds")
    )
    plausible = _is_plausible(numbers, lengths, seconds)
    numbers, lengths, seconds = numbers[plausible], lengths[plausible], seconds[plausible]
    speed = float(np.median(seconds / UNLEARNED.seconds(numbers, lengths)))
    # Of sizes beyond those observed nothing is said but that they go on as they begin: so they get tried.
    largest = float((numbers * lengths).max())
    prior_numbers, prior_lengths = (grid.ravel() for grid in np.meshgrid([1.0, 8.0, 64.0], [16.0, 128.0, 1024.0]))
    near = prior_numbers * prior_lengths <= max(largest, 1024.0)
    prior_numbers, prior_lengths = prior_numbers[near], prior_lengths[near]
    prior = speed * UNLEARNED.seconds(prior_numbers, prior_lengths)
    rows = np.concatenate(
        [_terms(numbers, lengths) / seconds[:, None], _terms(prior_numbers, prior_lengths) / prior[:, None]]
    )
    rows[:, -len(KNOTS) :][:, np.array(KNOTS) >= largest] = 0.0
    scale = np.where(rows.any(axis=0), rows.max(axis=0), 1.0)
    rows = rows / scale
    weights = np.concatenate([np.ones(len(seconds)), np.full(len(prior), _PRIOR_WEIGHT)])
    robust = np.ones(len(rows))
    found = np.zeros(rows.shape[1])
    for _ in range(_NUM_REWEIGHTINGS):
        roots = np.sqrt(weights * robust)
        found, _ = nnls(rows * roots[:, None], roots)
        errors = np.abs(rows @ found - 1)
        robust[: len(seconds)] = _TOLERANCE / np.maximum(errors[: len(seconds)], _TOLERANCE)
    return Costs.of((found / scale).tolist())


def _is_plausible(numbers: np.ndarray, lengths: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Not those that took much less than micro-batches that are no larger."""
    tokens = numbers * lengths
    no_larger = (tokens[None, :] <= tokens[:, None]) & (lengths[None, :] <= lengths[:, None])
    usual = np.nanmedian(np.where(no_larger, seconds[None, :], np.nan), axis=1)
    return seconds * _FASTEST >= usual


class WorkingCosts:
    """Costs as a run goes on: explored in its first window, learned anew after its 1st, 2nd, 4th, ... up to the 64th,
    and kept from there.

    So a cut changes a few times early in a run, always between windows, and never later.

    On an accelerator the first time of a shape is left out (`leaves_out_first`): kernels are chosen, loaded or
    compiled for it then. So two windows explore.
    """

    def __init__(self, costs: Costs = UNLEARNED, *, is_settled: bool = False, leaves_out_first: bool = False) -> None:
        self.costs = self._initial = costs
        self.version = 0
        self.num_windows = _LAST_UPDATE if is_settled else 0
        self._shapes: set[tuple[int, int]] | None = set() if leaves_out_first else None
        if not is_settled:
            import scipy.optimize  # noqa: F401  # half a second, which is not to come in the middle of a step
        self._first: list[Observation] = []  # they are kept: later ones are of fewer sizes
        self._observations: deque[Observation] = deque(maxlen=_MOST_OBSERVATIONS)
        self._running: deque[tuple[int, int, Timing]] = deque()

    def for_forwards(self) -> "WorkingCosts":
        """Costs that begin as these and learn by themselves what forwards alone take; if these never learn, they."""
        if self.is_settled and self.costs == UNLEARNED:
            return self
        own = WorkingCosts(self.costs, leaves_out_first=self._shapes is not None)
        own.num_windows = 0 if self.explores else _NUM_EXPLORED
        return own

    @property
    def explores(self) -> bool:
        """Whether nothing was learned yet: then micro-batches of many sizes say more than those taken for fastest."""
        return self.num_windows < (1 if self._shapes is None else _NUM_EXPLORED)

    @property
    def is_settled(self) -> bool:
        """Whether they will not change any more."""
        return self.num_windows >= _LAST_UPDATE

    def at_step(self, step: int) -> Costs:
        """For what is decided ahead of the device, and so has to be the same whatever has been measured meanwhile."""
        return self.costs if step > 2 * _LAST_UPDATE else self._initial

    def observe(self, num_examples: int, length: int, timing: Timing) -> None:
        """A micro-batch was queued on the device; its time is read when it is there."""
        if self.is_settled:
            return
        if self._shapes is not None and (num_examples, length) not in self._shapes:
            self._shapes.add((num_examples, length))
            return
        self._running.append((num_examples, length, timing))

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes. Micro-batches whose times are not known yet are left out."""
        seen = [[o.num_examples, o.length, o.seconds] for o in [*self._first, *self._observations]]
        return {
            "costs": self.costs.as_json(),
            "initial": self._initial.as_json(),
            "num_windows": self.num_windows,
            "observations": [] if self.is_settled else seen,
        }

    def load_state_dict(self, value: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            KeyError, TypeError, ValueError: if the value is no such thing.
        """
        seen = [Observation(int(n), int(length), float(seconds)) for n, length, seconds in value["observations"]]
        self.costs, self._initial = Costs.from_json(value["costs"]), Costs.from_json(value["initial"])
        self.num_windows = int(value["num_windows"])
        half = _MOST_OBSERVATIONS // 2
        self._first, self._observations = seen[:half], deque(seen[half:], maxlen=_MOST_OBSERVATIONS)
        self._running.clear()
        self.version += 1

    def window_done(self) -> None:
        """A window went through."""
        if self.is_settled:
            return
        while self._running and (seconds := self._running[0][2].read()) is not None:
            num_examples, length, _ = self._running.popleft()
            observation = Observation(num_examples, length, seconds)
            if len(self._first) < _MOST_OBSERVATIONS // 2:
                self._first.append(observation)
            else:
                self._observations.append(observation)
        self.num_windows += 1
        if self.num_windows & (self.num_windows - 1) == 0:
            if self._first:
                self.costs = fit_costs([*self._first, *self._observations])
            self.version += 1


def _terms(numbers: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    tokens = numbers * lengths
    return np.stack(
        [np.ones_like(tokens), tokens, tokens * lengths, *(np.maximum(0.0, tokens - knot) for knot in KNOTS)], axis=-1
    )
