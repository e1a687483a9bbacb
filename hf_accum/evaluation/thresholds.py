"""Thresholds by label, chosen on examples that nothing else is learned from: those of the best F1."""

import numpy as np

DEFAULT = 0.5


def best_threshold(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """The threshold of one label, (num_examples,), from which on it counts as predicted, of the greatest F1.

    Tried are the middles between neighbouring probabilities, and 0.5; of equally good ones it is the one nearest to
    0.5, the lower one of two. Without a positive no threshold is better than another: 0.5.
    """
    num_positives = int(truth.sum())
    if not num_positives or not np.isfinite(probabilities).all():
        return DEFAULT
    values = np.unique(probabilities)
    candidates = np.unique(np.concatenate([[DEFAULT], (np.concatenate([[0.0], values[:-1]]) + values) / 2]))
    num_predicted = len(truth) - np.searchsorted(np.sort(probabilities), candidates)
    num_right = num_positives - np.searchsorted(np.sort(probabilities[truth.astype(bool)]), candidates)
    f1 = 2 * num_right / (num_predicted + num_positives)
    best = candidates[f1 == f1.max()]
    return float(best[np.argmin(np.abs(best - DEFAULT))])


def best_thresholds(probabilities: np.ndarray, truth: np.ndarray) -> tuple[float, ...]:
    """Of each label, of (num_examples, num_labels): see `best_threshold`."""
    return tuple(best_threshold(*columns) for columns in zip(probabilities.T, truth.T, strict=True))
