"""Does a probability say how often one is right? Measured, and mended by one temperature.

Guo, Pleiss, Sun and Weinberger, On Calibration of Modern Neural Networks, 2017: the expected calibration error
(section 2), and temperature scaling (section 4.2).
"""

import math
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_expit, log_softmax

NUM_BINS = 15
_HIGHEST = 50.0
"""The temperatures that are tried: up to this, and down to its inverse."""


def reliability_table(confidences: np.ndarray, is_right: np.ndarray) -> list[dict[str, Any]]:
    """How often decisions, (n,), were right, in bins of equal width of the confidence with which they were made.

    A bin has its upper bound in it, not its lower one. Of an empty bin the means are null.
    """
    edges = np.linspace(0.0, 1.0, NUM_BINS + 1)
    bins = np.clip(np.digitize(confidences, edges[1:-1], right=True), 0, NUM_BINS - 1)
    table: list[dict[str, Any]] = []
    for index in range(NUM_BINS):
        here = bins == index
        count = int(here.sum())
        table.append(
            {
                "above": float(edges[index]),
                "to": float(edges[index + 1]),
                "count": count,
                "confidence": float(confidences[here].mean()) if count else None,
                "accuracy": float(is_right[here].mean()) if count else None,
            }
        )
    return table


def expected_calibration_error(table: list[dict[str, Any]]) -> float | None:
    """The mean distance of confidence and accuracy over the bins of a table, weighted by their counts."""
    filled = [row for row in table if row["count"]]
    error = sum(row["count"] * abs(row["confidence"] - row["accuracy"]) for row in filled)
    error /= sum(row["count"] for row in filled)
    return error if math.isfinite(error) else None


def fit_temperature(logits: np.ndarray, truth: np.ndarray) -> float:
    """The number by which logits are divided so that their negative log-likelihood is least.

    Args:
        logits: (num_examples, num_classes), or (num_examples, num_labels) where each label is there or not.
        truth: class indices, (num_examples,), or zeros and ones as the logits.

    The likelihood is concave in the inverse of the temperature, so what is found is the least there is, between 1/50
    and 50. 1.0 where a logit is not a number.
    """
    logits = np.asarray(logits, dtype=np.float64)
    if not np.isfinite(logits).all():
        return 1.0
    signs = 2.0 * truth - 1.0 if truth.ndim == 2 else None

    def loss(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        if signs is not None:
            return -float(log_expit(signs * scaled).mean())
        return -float(log_softmax(scaled, axis=1)[np.arange(len(truth)), truth].mean())

    most = math.log(_HIGHEST)
    found: Any = minimize_scalar(loss, bounds=(-most, most), method="bounded", options={"xatol": 1e-6})
    return math.exp(float(found.x))


def is_extreme(temperature: float) -> bool:
    """Whether it is ten times off from 1, as where logits are all alike or examples all right: it says little."""
    return not 0.1 < temperature < 10.0
