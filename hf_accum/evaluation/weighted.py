"""Figures of weighted examples, for many weightings at once: what a bootstrap computes again and again.

`weights` are (num_resamples, num_examples), how often an example was drawn; each figure is (num_resamples,), NaN
where it is not defined. Figures and averages are those of the shipped metrics.
"""

import warnings

import numpy as np
from scipy.sparse import csr_array


def nanmean(rows: np.ndarray) -> np.ndarray:
    """The mean of each column, (num_rows, num_resamples), over what is there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a column of nothing
        return np.nanmean(rows, axis=0)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, np.nan), where=whole > 0)


def mean(weights: np.ndarray, values: np.ndarray, of: np.ndarray | None = None) -> np.ndarray:
    """The sum of values over that of `of`, one for each example; None: over the number of examples."""
    return _share(weights @ values, weights.sum(axis=1) if of is None else weights @ of)


def f1_figures(weights: np.ndarray, chosen: csr_array, truth: csr_array) -> dict[str, np.ndarray]:
    """Macro and micro F1 of 0 and 1, (num_examples, num_labels); labels that occur nowhere are not in macro."""
    drawn = weights.T
    right, predicted, there = (table.T @ drawn for table in (chosen.multiply(truth), chosen, truth))
    micro = _share(2 * right.sum(axis=0), predicted.sum(axis=0) + there.sum(axis=0))
    return {"macro_f1": nanmean(_share(2 * right, predicted + there)), "micro_f1": micro}


def rank_figures(weights: np.ndarray, scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUROC and average precision of scores, (num_examples,), for what is true of some.

    At each different score so many are found and so many are wrong: AUROC is the area below the line through these
    points, average precision the sum of the precisions, each as long as the recall grows at it.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    drawn = weights[:, order]
    found = np.cumsum(drawn * truth[order], axis=1)[:, ends]
    wrong = np.cumsum(drawn, axis=1)[:, ends] - found
    steps, wrong_steps = np.diff(found, axis=1, prepend=0), np.diff(wrong, axis=1, prepend=0)
    positives, negatives = found[:, -1], wrong[:, -1]
    precision = found / np.maximum(found + wrong, 1e-12)
    is_defined = (positives > 0) & (negatives > 0)
    auroc = _share((wrong_steps * (found - steps / 2)).sum(axis=1), positives * negatives)
    average = _share((steps * precision).sum(axis=1), positives)
    return auroc, np.where(is_defined, average, np.nan)


def rank_figures_by_label(weights: np.ndarray, scores: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """Macro AUROC and average precision of (num_examples, num_labels), over the labels that have both values."""
    each = [rank_figures(weights, *columns) for columns in zip(scores.T, truth.T, strict=True)]
    names = ("macro_auroc", "macro_average_precision")
    return {name: nanmean(np.stack(values)) for name, values in zip(names, zip(*each, strict=True), strict=True)}


def rank_figures_of_pairs(weights: np.ndarray, scores: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """Micro AUROC and average precision: all (example, label) pairs in one ranking."""
    pairs = np.repeat(weights, scores.shape[1], axis=1)
    found = rank_figures(pairs, scores.ravel(), truth.ravel())
    return dict(zip(("micro_auroc", "micro_average_precision"), found, strict=True))


def correlations(weights: np.ndarray, predicted: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """Pearson's of the numbers, and Spearman's: Pearson's of their ranks among what was drawn."""
    numbers = [np.broadcast_to(side, weights.shape) for side in (predicted, truth)]
    ranks = [_ranks(weights, side) for side in (predicted, truth)]
    return {"pearson": _pearson(weights, *numbers), "spearman": _pearson(weights, *ranks)}


def _ranks(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The mean rank of equal values, in each resample: (num_resamples, num_examples)."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    starts = np.cumsum(counts) - counts
    of_value = np.add.reduceat(weights[:, np.argsort(place, kind="stable")], starts, axis=1)
    return (np.cumsum(of_value, axis=1) - of_value / 2)[:, place]


def _pearson(weights: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    total = weights.sum(axis=1, keepdims=True)
    least = [1e-9 * np.abs(side).max() for side in (left, right)]  # of numbers that are all the same but for rounding
    sides = [side - (weights * side).sum(axis=1, keepdims=True) / total for side in (left, right)]
    spread = [np.sqrt((weights * side**2).sum(axis=1)) for side in sides]
    product = (weights * sides[0] * sides[1]).sum(axis=1)
    varies = (spread[0] > least[0]) & (spread[1] > least[1])
    return np.where(varies, product / np.where(varies, spread[0] * spread[1], 1.0), np.nan)
