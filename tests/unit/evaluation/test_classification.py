"""The figures of a classification, what is said of them, and their intervals."""

from typing import Any

import numpy as np
import pytest
import sklearn.metrics
from scipy.special import softmax

from hf_accum.evaluation.classification import (
    check_classification,
    classification_figures,
    with_classification_intervals,
    with_regression_intervals,
)
from hf_accum.evaluation.decisions import Decisions, Fitted
from hf_accum.evaluation.judge import Judged

sk: Any = sklearn.metrics
NAMES = ("a", "b", "c", "d")
rng = np.random.default_rng(2)


def judged(outputs: np.ndarray, truth: Any, groups: Any = None) -> Judged:
    number = len(outputs)
    losses = rng.random(number)
    how = np.arange(number) if groups is None else np.array(groups)
    return Judged(
        [f"0:{i}" for i in range(number)], how, np.ones(number), outputs, np.array(truth), losses.mean(), losses
    )


def test_one_label() -> None:
    logits = np.array([[3, 0, 0, -9], [0, 2, 0, -9], [1, 0, 0, -9], [2, 1, 0, -9]], dtype=np.float32)
    of = judged(logits, [0, 1, 0, 2])
    figures = classification_figures(of, Decisions(NAMES, False))
    assert (figures["num_examples"], figures["loss"], figures["accuracy"]) == (4, of.loss, 0.75)
    assert figures["macro_f1"] == pytest.approx((2 * 2 / 5 + 1 + 0) / 3)
    right = softmax(logits.astype(float), axis=1).max(1)
    assert sum(row["count"] for row in figures["calibration"]["reliability"]) == 4
    assert figures["expected_calibration_error"] <= abs(right - [1, 1, 1, 0]).mean() + 1e-9
    assert figures["notes"][0] == "labels that are never predicted, of 1 examples in all: c"
    assert "labels that no example has, or all have" in figures["notes"][1]
    assert figures["notes"][1].endswith(": d")


def test_several_labels_and_what_was_fitted() -> None:
    logits = np.array([[3, -3, -1, 1], [-3, 2, -2, 1], [1, 1, -3, 1]], dtype=np.float32)
    truth = np.array([[1, 0, 1, 1], [0, 1, 0, 1], [1, 1, 0, 1]], dtype=np.float32)
    fitted = Fitted(1.5, (0.5, 0.5, 0.3, 0.5), 20, (3, 4, 0, 9))
    figures = classification_figures(judged(logits, truth), Decisions(NAMES, True, fitted))
    assert (figures["accuracy"], figures["macro_f1"]) == (1.0, 1.0)
    assert figures["calibration"]["thresholds"] == {"a": 0.5, "b": 0.5, "c": 0.3, "d": 0.5}
    assert [row["threshold"] for row in figures["per_class"].values()] == [0.5, 0.5, 0.3, 0.5]
    said = "\n".join(figures["notes"])
    assert "temperature 1.500, fitted on 20 examples\n" in said
    assert "none of these examples has the label: c" in said


def test_intervals_hold_the_figures_and_widen_with_groups() -> None:
    logits = rng.normal(size=(300, 4)).astype(np.float32)
    truth = np.where(rng.random(300) < 0.5, logits.argmax(1), rng.integers(0, 4, 300))
    widths = []
    for groups in (None, np.arange(300) // 30):
        of = judged(logits, truth, groups)
        decisions = Decisions(NAMES, False)
        figures = with_classification_intervals(classification_figures(of, decisions), of, decisions)
        found = figures["confidence_intervals"]
        assert list(found) == ["loss", "accuracy", "macro_f1", "micro_f1", "macro_auroc", "macro_average_precision"]
        for name, (low, high) in found.items():
            assert low < figures[name] < high
        widths.append(found["accuracy"][1] - found["accuracy"][0])
        assert figures["bootstrap"]["num_groups"] == (300 if groups is None else 10)
    share = figures["accuracy"]
    assert widths[0] == pytest.approx(2 * 1.96 * np.sqrt(share * (1 - share) / 300), rel=0.15)


def test_several_labels_and_numbers_have_intervals_too() -> None:
    logits = rng.normal(size=(80, 4)).astype(np.float32)
    of, decisions = (
        judged(logits, (logits + rng.normal(size=logits.shape) > 0).astype(np.float32)),
        Decisions(NAMES, True),
    )
    figures = with_classification_intervals(classification_figures(of, decisions), of, decisions)
    for name in ("macro_auroc", "micro_average_precision", "micro_f1"):
        low, high = figures["confidence_intervals"][name]
        assert low < figures[name] < high
    numbers = rng.normal(size=80).astype(np.float32)
    of = judged(numbers, numbers + rng.normal(size=80))
    plain = {"loss": of.loss, "pearson": np.corrcoef(numbers, of.references)[0, 1]}
    figures = with_regression_intervals(plain, of)
    low, high = figures["confidence_intervals"]["pearson"]
    assert low < plain["pearson"] < high


def test_no_intervals_where_all_is_one_group_or_no_number() -> None:
    decisions = Decisions(NAMES, False)
    of = judged(np.eye(4, dtype=np.float32), np.arange(4), [0, 0, 0, 0])
    assert "confidence_intervals" not in with_classification_intervals({"accuracy": 1.0}, of, decisions)
    of = judged(np.full((4, 4), np.nan, dtype=np.float32), np.arange(4))
    figures = with_classification_intervals(classification_figures(of, decisions), of, decisions)
    assert figures["macro_auroc"] is None
    assert figures["expected_calibration_error"] is None
    assert "macro_auroc" not in figures["confidence_intervals"]


@pytest.mark.parametrize("several", [False, True])
def test_figures_by_which_a_checkpoint_may_be_the_best_are_known_before(several: bool) -> None:
    for name in ("loss", "macro_f1", "macro_auroc", "macro_average_precision", "expected_calibration_error"):
        check_classification(Decisions(NAMES, several), best_metric=name)
    for name in ("notes", "calibration", "per_class", "f2"):
        with pytest.raises(ValueError, match=f"`best_metric` {name}: has to be one of accuracy"):
            check_classification(Decisions(NAMES, several), best_metric=name)
