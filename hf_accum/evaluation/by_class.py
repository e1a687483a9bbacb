"""Figures of one class or label against all others, and their means: what the metrics of classification share."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score


def ranked(truth: np.ndarray, scores: np.ndarray) -> dict[str, float | None]:
    """AUROC and average precision of scores, (num_examples,), for what is true of some.

    None where it is true of all or of none, or a score is not a number.
    """
    if not 0 < truth.mean() < 1 or not np.isfinite(scores).all():
        return {"auroc": None, "average_precision": None}
    return {
        "auroc": float(roc_auc_score(truth, scores)),
        "average_precision": float(average_precision_score(truth, scores)),
    }


def mean_of_classes(per_class: Mapping[str, Mapping[str, Any]], name: str) -> float | None:
    """The mean of a figure over the classes that have it; None: none has."""
    known = [row[name] for row in per_class.values() if row[name] is not None]
    return float(np.mean(known)) if known else None
