"""The figures of a classification: the shipped metrics, calibration, intervals, and what is to be said of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from hf_accum.errors import shortened
from hf_accum.evaluation.bootstrap import Weighted, num_rank_resamples, with_intervals
from hf_accum.evaluation.calibration import expected_calibration_error, is_extreme, reliability_table
from hf_accum.evaluation.decisions import Decisions
from hf_accum.evaluation.evaluate import Metric, Metrics, check_best_metric
from hf_accum.evaluation.judge import Judged
from hf_accum.evaluation.weighted import (
    correlations,
    f1_figures,
    mean,
    rank_figures_by_label,
    rank_figures_of_pairs,
)


def classification_figures(judged: Judged, decisions: Decisions, extra_metrics: Sequence[Metric] = ()) -> Metrics:
    """Loss, accuracy, F1, AUROC, average precision and calibration, overall and by label; then other metrics.

    These get class indices, or of several labels the probabilities. What is to be said is in `notes`.
    """
    truth, probabilities = judged.references, decisions.probabilities(judged.outputs)
    names = {"label_names": decisions.names}
    if decisions.several:
        fitted = decisions.fitted is not None and decisions.fitted.thresholds is not None
        shipped = Metric("multi_label", names | ({"thresholds": decisions.thresholds} if fitted else {}))
        predictions = probabilities
    else:
        shipped = Metric("single_label", names | {"scores": probabilities})
        predictions = decisions.chosen(judged.outputs)
    figures: Metrics = {"num_examples": len(truth), "loss": judged.loss}
    for metric in (shipped, *extra_metrics):
        figures |= metric.compute(predictions, truth)
    table = reliability_table(*decisions.confidences(judged))
    calibration = {"reliability": table, **decisions.as_json()}
    per_class = figures.pop("per_class")
    return {
        **figures,
        "expected_calibration_error": expected_calibration_error(table),
        "calibration": calibration,
        "per_class": per_class,
        "notes": [*_notes_of_fit(decisions), *_notes(per_class)],
    }


def check_classification(
    decisions: Decisions, extra_metrics: Sequence[Metric] = (), best_metric: str | None = None
) -> None:
    """Compute all figures on made-up logits of each label once, before the training that needs them.

    Raises:
        UserError: if a metric is not to be had, cannot take such predictions, or has no figure `best_metric`.
    """
    number = len(decisions.names)
    each_once = np.eye(number, dtype=np.float32)
    truth = each_once if decisions.several else np.arange(number)
    judged = Judged(ids=[], groups=truth, weights=truth, outputs=each_once, references=truth, loss=0.0)
    check_best_metric(best_metric, classification_figures(judged, decisions, extra_metrics))


def _notes(per_class: Mapping[str, Mapping[str, Any]]) -> list[str]:
    never = [name for name, row in per_class.items() if row["support"] and not row["predicted"]]
    unranked = [name for name, row in per_class.items() if row["auroc"] is None]
    notes = []
    if never:
        rows = int(sum(per_class[name]["support"] for name in never))
        notes.append(f"labels that are never predicted, of {rows:,} examples in all: {_listed(never)}")
    if unranked:
        notes.append(
            "labels that no example has, or all have (or with a score that is not a number), which the means of "
            f"AUROC and average precision leave out: {_listed(unranked)}"
        )
    return notes


def _notes_of_fit(decisions: Decisions) -> list[str]:
    fitted = decisions.fitted
    if fitted is None:
        return []
    notes = []
    if fitted.temperature is not None:
        end = ", so far from 1 that it says little" if is_extreme(fitted.temperature) else ""
        notes.append(f"temperature {fitted.temperature:.3f}, fitted on {fitted.num_examples:,} examples{end}")
    if fitted.thresholds is not None:
        notes.append(f"thresholds by label, each of the best F1 on {fitted.num_examples:,} examples")
        missing = [n for n, k in zip(decisions.names, fitted.num_positives, strict=True) if not k]
        if missing:
            notes.append(f"threshold 0.5, since none of these examples has the label: {_listed(missing)}")
    return notes


def _listed(names: Sequence[str]) -> str:
    return f"{shortened(', '.join(names), 200)} ({len(names)})" if len(names) > 1 else names[0]


def weighted_figures(judged: Judged, decisions: Decisions | None) -> list[Weighted]:
    """What a bootstrap computes again: of a classification what is counted, then what is ranked where all scores are
    numbers; of a regression (None) its errors."""
    return [_of_numbers(judged)] if decisions is None else _of_classes(judged, decisions)


def _of_classes(judged: Judged, decisions: Decisions) -> list[Weighted]:
    chosen, scores = decisions.chosen(judged.outputs), decisions.probabilities(judged.outputs)
    classes = np.arange(len(decisions.names))
    truth = judged.references > 0.5 if decisions.several else judged.references[:, None] == classes
    table = chosen if decisions.several else chosen[:, None] == classes
    is_right = (table == truth).all(axis=1).astype(float)
    tables = [csr_array(side.astype(float)) for side in (table, truth)]

    def counted(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {
            "loss": _loss(weights, judged),
            "accuracy": mean(weights, is_right),
            **f1_figures(weights, tables[0], tables[1]),
        }

    def ranked(weights: np.ndarray) -> dict[str, np.ndarray]:
        of_pairs = rank_figures_of_pairs(weights, scores, truth) if decisions.several else {}
        return {**rank_figures_by_label(weights, scores, truth), **of_pairs}

    if not np.isfinite(scores).all():
        return [Weighted(counted)]
    num_rank = num_rank_resamples(scores.size * (2 if decisions.several else 1))  # micro sorts them again
    return [Weighted(counted), Weighted(ranked, num_rank, len(classes) if decisions.several else 1)]


def _of_numbers(judged: Judged) -> Weighted:
    predicted, truth = judged.outputs.astype(np.float64), judged.references.astype(np.float64)

    def errors(weights: np.ndarray) -> dict[str, np.ndarray]:
        both = {"mse": mean(weights, (predicted - truth) ** 2), "mae": mean(weights, abs(predicted - truth))}
        related = correlations(weights, predicted, truth) if np.isfinite(predicted).all() else {}
        return {"loss": _loss(weights, judged), **both, **related}

    return Weighted(errors)


def with_classification_intervals(figures: Metrics, judged: Judged, decisions: Decisions) -> Metrics:
    """The figures with 95 % intervals by a bootstrap over groups; without where there is one group alone."""
    parts = weighted_figures(judged, decisions)
    return with_intervals(figures, judged.groups, parts, parts[1].num_resamples if len(parts) > 1 else None)


def with_regression_intervals(figures: Metrics, judged: Judged) -> Metrics:
    """The same of predicted numbers."""
    return with_intervals(figures, judged.groups, weighted_figures(judged, None))


def _loss(weights: np.ndarray, judged: Judged) -> np.ndarray:
    assert judged.losses is not None
    return mean(weights, judged.losses, judged.weights)
