"""Curves of many steps in a few bins, without hiding an extreme: the mean of each bin, its least and its greatest."""

from dataclasses import dataclass

import numpy as np

MOST_BINS = 300


@dataclass(frozen=True)
class Binned:
    """A curve: (num_bins,) each. A bin without any number has NaN."""

    steps: np.ndarray
    """The middle of the steps of each bin."""
    low: np.ndarray
    mean: np.ndarray
    high: np.ndarray
    steps_per_bin: int
    """1: nothing was put together."""


def binned(steps: np.ndarray, values: np.ndarray, weights: np.ndarray | None = None, most: int = MOST_BINS) -> Binned:
    """Put neighbouring steps together, as many in each bin (but the last), to at most `most` bins.

    Args:
        steps: (num_steps,), in order.
        values: (num_steps,). Those that are not finite are passed over.
        weights: of the values in the mean, (num_steps,), at least 0; None: all alike. With a rate's denominators it
            is the rate of all steps of the bin together.
    """
    weights = np.ones(len(steps)) if weights is None else weights
    per_bin = max(1, -(-len(steps) // most))
    num_bins = -(-len(steps) // per_bin)
    padded = num_bins * per_bin - len(steps)

    def rows(of_step: np.ndarray) -> np.ndarray:
        return np.pad(of_step.astype(np.float64), (0, padded), constant_values=np.nan).reshape(num_bins, per_bin)

    value, weight, step = rows(values), rows(weights), rows(steps)
    known = np.isfinite(value) & np.isfinite(weight)
    total = np.where(known, weight, 0.0).sum(axis=1)
    summed = (np.where(known, value, 0.0) * np.where(known, weight, 0.0)).sum(axis=1)
    some = known.any(axis=1)
    low = np.where(some, np.where(known, value, np.inf).min(axis=1, initial=np.inf), np.nan)
    high = np.where(some, np.where(known, value, -np.inf).max(axis=1, initial=-np.inf), np.nan)
    mean = np.divide(summed, total, out=np.full(num_bins, np.nan), where=total > 0)
    return Binned(np.nanmean(step, axis=1) if num_bins else np.empty(0), low, mean, high, per_bin)
