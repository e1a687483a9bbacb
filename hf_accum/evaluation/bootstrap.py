"""Confidence intervals by a bootstrap over groups: patients are drawn anew with all that is theirs, not examples.

Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13: percentile intervals.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

LEVEL = 0.95
NUM_RESAMPLES = 1_000
_LEAST_RESAMPLES = 100
_RANKED_VALUES = 2e7
_AT_ONCE = 2_000_000  # values in memory

WeightedFigures = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""Weights of examples, (num_resamples, num_examples), to figures, (num_resamples,) each, NaN where not defined."""
Interval = tuple[float, float] | None


class Weighted(NamedTuple):
    """Figures of weighted examples, how many resamples they get, and how many values an example takes meanwhile."""

    figures: WeightedFigures
    num_resamples: int = NUM_RESAMPLES
    width: int = 1


class Bootstrapped(dict[str, Any]):
    """Figures, with what a bootstrap computes them of: which stays in this process, and goes to no other rank."""

    def __init__(self, figures: Mapping[str, Any], groups: np.ndarray, parts: Sequence[Weighted]) -> None:
        super().__init__(figures)
        self.groups, self.parts = groups, parts

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        """As the figures alone: what computes them is made of functions."""
        return dict, (dict(self),)


def with_intervals(
    figures: Mapping[str, Any], groups: np.ndarray, parts: Sequence[Weighted], num_rank: int | None = None
) -> Bootstrapped:
    """The figures, with 95 % intervals of those of them that a bootstrap over groups computes again, and how these
    came about; as they are where there is one group alone.

    Args:
        groups: as of `intervals`.
        parts: computed one after the other, of different figures.
        num_rank: how many resamples AUROC and average precision got.
    """
    if not groups.any():
        return Bootstrapped(figures, groups, parts)
    found: dict[str, Interval] = {}
    for part in parts:
        found |= intervals(groups, part.figures, part.num_resamples, width=part.width)
    known = {name: list(found[name] or ()) or None for name in figures if name in found}
    how = {"level": LEVEL, "num_groups": int(groups.max()) + 1, "num_resamples": NUM_RESAMPLES}
    if num_rank is not None:
        how["num_resamples_of_auroc_and_average_precision"] = num_rank
    return Bootstrapped({**figures, "confidence_intervals": known, "bootstrap": how}, groups, parts)


def num_rank_resamples(num_scores: int) -> int:
    """How many resamples figures get that sort so many scores: fewer where they are many, from 1,000 down to 100."""
    return int(np.clip(_RANKED_VALUES // max(num_scores, 1), _LEAST_RESAMPLES, NUM_RESAMPLES))


def intervals(
    groups: np.ndarray, figures: WeightedFigures, num_resamples: int = NUM_RESAMPLES, *, seed: int = 0, width: int = 1
) -> dict[str, Interval]:
    """The 95 % percentile interval of each figure; None for one that is not defined in any resample.

    Args:
        groups: of each example the number of its group, from 0 on, (num_examples,).
        figures: computed for some resamples at once, each `width` values an example in memory.
    """
    found: dict[str, list[np.ndarray]] = {}
    for weights in resamples(groups, num_resamples, seed, _AT_ONCE // width):
        for name, values in figures(weights).items():
            found.setdefault(name, []).append(values)
    return {name: _interval(np.concatenate(values)) for name, values in found.items()}


def _interval(values: np.ndarray) -> Interval:
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    low, high = np.percentile(known, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


def resamples(groups: np.ndarray, num_resamples: int, seed: int, num_values: int) -> Iterator[np.ndarray]:
    """Weights of examples, some resamples at a time, of as many values at most: groups drawn with replacement.

    `groups` are the numbers of the examples' groups, from 0 on. The first resamples are the same for any number.
    """
    num_groups = int(groups.max()) + 1
    at_once = max(1, num_values // max(len(groups), num_groups))
    for start in range(0, num_resamples, at_once):
        rows = range(start, min(start + at_once, num_resamples))
        # A generator for each: what is drawn depends on no chunk.
        draws = [np.random.default_rng([seed, row]).integers(0, num_groups, num_groups) for row in rows]
        counts = np.stack([np.bincount(drawn, minlength=num_groups) for drawn in draws])
        yield counts[:, groups].astype(np.float64)
