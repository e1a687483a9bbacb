"""The shipped metrics against scikit-learn and numpy themselves, loaded by `evaluate` without network."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from hf_accum.evaluation.evaluate import Metric, check_metrics, shipped_metrics

sk: Any = sklearn.metrics  # its inline types refuse what its documentation allows
NAMES = ("recessive", "dominant", "X-linked", "other")
SINGLE = Metric("single_label", {"label_names": NAMES})
MULTI = Metric("multi_label", {"label_names": NAMES[:3]})
REGRESSION = Metric("regression", {})
few = settings(max_examples=15)  # evaluate takes 50 ms to load a metric


def is_close(found: float | None, expected: float | None) -> bool:
    return found == expected if found is None or expected is None else math.isclose(found, expected, abs_tol=1e-6)


def test_four_metrics_are_shipped() -> None:
    assert shipped_metrics() == ["entities", "multi_label", "regression", "single_label"]


# One label


@few
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_single_label_figures(pairs: list[tuple[int, int]]) -> None:
    """Classes that are never predicted, or never occur, included; scikit-learn leaves out those that are nowhere."""
    predicted, truth = (np.array(side, dtype=np.int32) for side in zip(*pairs, strict=True))
    scores = np.random.default_rng(len(pairs)).integers(0, 5, (len(pairs), 4)) / 4
    figures = replace(SINGLE, arguments={**SINGLE.arguments, "scores": scores}).compute(predicted, truth)
    classes: Any = {"labels": [0, 1, 2, 3], "zero_division": 0}
    assert is_close(figures["accuracy"], sk.accuracy_score(truth, predicted))
    assert is_close(figures["macro_f1"], sk.f1_score(truth, predicted, average="macro", zero_division=0))
    assert is_close(figures["micro_f1"], sk.f1_score(truth, predicted, average="micro", **classes))
    assert tuple(figures["per_class"]) == NAMES
    table = {
        "precision": sk.precision_score(truth, predicted, average=None, **classes),
        "recall": sk.recall_score(truth, predicted, average=None, **classes),
        "f1": sk.f1_score(truth, predicted, average=None, **classes),
        "support": np.bincount(truth, minlength=4),
        "predicted": np.bincount(predicted, minlength=4),
    }
    ranked: dict[str, list[float]] = {"auroc": [], "average_precision": []}
    for index, name in enumerate(NAMES):
        row = figures["per_class"][name]
        assert row.keys() == {*table, *ranked}
        is_there = index in set(truth) | set(predicted)
        for column, values in table.items():
            is_count = column in ("support", "predicted")
            assert is_close(row[column], float(values[index]) if is_there or is_count else None)
        for column, score in (("auroc", sk.roc_auc_score), ("average_precision", sk.average_precision_score)):
            has_both = 0 < (truth == index).sum() < len(truth)
            assert is_close(row[column], score(truth == index, scores[:, index]) if has_both else None)
            ranked[column] += [row[column]] if has_both else []
    for column, values in ranked.items():
        assert is_close(figures[f"macro_{column}"], float(np.mean(values)) if values else None)
    json.dumps(figures, allow_nan=False)


def test_a_class_that_is_nowhere_is_left_out_of_macro_f1() -> None:
    """By hand: a test set with two of four classes, all predictions right."""
    same = np.array([0, 1, 1], dtype=np.int32)
    figures = SINGLE.compute(same, same)
    assert (figures["accuracy"], figures["micro_f1"], figures["macro_f1"]) == (1.0, 1.0, 1.0)
    nothing = {"precision": None, "recall": None, "f1": None, "support": 0.0, "predicted": 0.0}
    assert figures["per_class"]["other"] == nothing
    wrong = SINGLE.compute(np.array([0, 1, 3], dtype=np.int32), same)
    assert wrong["macro_f1"] == pytest.approx((1.0 + 2 / 3 + 0.0) / 3)  # what is predicted wrongly counts


# Several labels


probabilities = st.sampled_from((0.0, 0.2, 0.49, 0.5, 0.51, 0.9, 1.0))
rows = st.lists(
    st.tuples(st.tuples(*[probabilities] * 3), st.tuples(*[st.sampled_from((0.0, 1.0))] * 3)),
    min_size=2,
    max_size=25,
)


@few
@given(rows)
def test_multi_label_figures(pairs: list[Any]) -> None:
    scores = np.array([scores for scores, _ in pairs], dtype=np.float32)
    truth = np.array([truth for _, truth in pairs], dtype=np.float32)
    chosen, present = scores >= 0.5, truth > 0.5
    figures = MULTI.compute(scores, truth)
    assert is_close(figures["accuracy"], sk.accuracy_score(present, chosen))
    of_each = sk.f1_score(present, chosen, average=None, zero_division=0)
    is_there: Any = (present | chosen).any(axis=0)
    assert is_close(figures["macro_f1"], float(of_each[is_there].mean()) if is_there.any() else None)
    assert is_close(figures["micro_f1"], sk.f1_score(present, chosen, average="micro", zero_division=0))
    aurocs = [
        sk.roc_auc_score(present[:, i], scores[:, i]) if len(set(present[:, i])) == 2 else None for i in range(3)
    ]
    known = [auroc for auroc in aurocs if auroc is not None]
    assert is_close(figures["macro_auroc"], float(np.mean(known)) if known else None)
    has_both = 0 < present.sum() < present.size
    pairs_of = present.ravel(), scores.ravel()
    assert is_close(figures["micro_auroc"], sk.roc_auc_score(*pairs_of) if has_both else None)
    assert is_close(figures["micro_average_precision"], sk.average_precision_score(*pairs_of) if has_both else None)
    found = [row["average_precision"] for row in figures["per_class"].values()]
    expected = [
        sk.average_precision_score(present[:, i], scores[:, i]) if aurocs[i] is not None else None for i in range(3)
    ]
    assert all(map(is_close, found, expected))
    defined = [value for value in expected if value is not None]
    assert is_close(figures["macro_average_precision"], float(np.mean(defined)) if defined else None)
    for index, name in enumerate(NAMES[:3]):
        row = figures["per_class"][name]
        assert row["support"] == present[:, index].sum()
        assert is_close(row["auroc"], aurocs[index])
        for column, score in (("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score)):
            value = score(present[:, index], chosen[:, index], zero_division=0)
            assert is_close(row[column], value if is_there[index] else None)
    json.dumps(figures, allow_nan=False)


def test_each_label_has_its_threshold() -> None:
    scores = np.array([[0.3, 0.6, 0.1], [0.2, 0.8, 0.2]])
    truth = np.array([[1, 0, 1], [0, 1, 0]], dtype=np.float32)
    metric = replace(MULTI, arguments={**MULTI.arguments, "thresholds": (0.3, 0.7, 0.15)})
    figures = metric.compute(scores, truth)
    assert [row["threshold"] for row in figures["per_class"].values()] == [0.3, 0.7, 0.15]
    assert [row["f1"] for row in figures["per_class"].values()] == [1.0, 1.0, 0.0]  # 0.3 itself is above it
    assert figures["macro_f1"] == pytest.approx(2 / 3)


def test_auroc_is_null_where_a_label_is_always_or_never_there() -> None:
    truth = np.array([[1, 0, 1], [1, 0, 0]], dtype=np.float32)
    scores = np.array([[0.9, 0.1, 0.8], [0.2, 0.3, 0.3]], dtype=np.float32)
    figures = MULTI.compute(scores, truth)
    assert [row["auroc"] for row in figures["per_class"].values()] == [None, None, 1.0]
    assert figures["macro_auroc"] == 1.0
    nowhere = MULTI.compute(scores, np.zeros_like(truth))
    assert (nowhere["macro_auroc"], nowhere["micro_auroc"]) == (None, None)


# A number


@few
@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=1, max_size=20))
def test_regression_figures(pairs: list[tuple[int, int]]) -> None:
    predicted, truth = (np.array(side, dtype=np.float64) / 8 for side in zip(*pairs, strict=True))
    figures = REGRESSION.compute(predicted.astype(np.float32), truth.astype(np.float32))  # exact in both
    assert is_close(figures["mse"], sk.mean_squared_error(truth, predicted))
    assert is_close(figures["mae"], sk.mean_absolute_error(truth, predicted))
    if len(set(predicted)) > 1 and len(set(truth)) > 1:
        assert is_close(figures["pearson"], np.corrcoef(truth, predicted)[0, 1])
        assert is_close(figures["spearman"], np.corrcoef(rankdata(truth), rankdata(predicted))[0, 1])
    else:
        assert (figures["pearson"], figures["spearman"]) == (None, None)
    json.dumps(figures, allow_nan=False)


# Metrics by name


def test_a_metric_that_is_not_to_be_had_says_which_are() -> None:
    with pytest.raises(
        ValueError,
        match=r"metric 'no_such_metric': neither shipped \(entities, multi_label, .*, single_label\) nor .* hub",
    ):
        Metric("no_such_metric", {}).compute(np.zeros(2), np.zeros(2))


def test_metrics_are_checked_before_the_training() -> None:
    classes, scores = torch.zeros(2, dtype=torch.int32), torch.full((2, 3), 0.5)
    check_metrics([SINGLE], None, classes)
    for name in ("loss", "accuracy", "macro_f1"):
        check_metrics([SINGLE], name, classes)
    check_metrics([MULTI], "macro_auroc", scores)
    check_metrics([REGRESSION], "pearson", torch.zeros(2))
    check_metrics([], "loss", classes)
    with pytest.raises(ValueError, match=r"`best_metric` f1: has to be one of accuracy, loss, macro_f1, micro_f1$"):
        check_metrics([SINGLE], "f1", classes)
    with pytest.raises(ValueError, match=r"`best_metric` per_class: has to be one of"):
        check_metrics([SINGLE], "per_class", classes)
    with pytest.raises(ValueError, match="no_such_metric"):
        check_metrics([SINGLE, Metric("no_such_metric", {})], None, classes)


def test_a_metric_for_other_predictions_is_refused() -> None:
    classes = torch.zeros(2, dtype=torch.int32)
    for metric in (MULTI, Metric("single_label", {}), Metric("single_label", {"label_names": NAMES, "beta": 2})):
        with pytest.raises(ValueError, match=f"metric '{metric.name}' cannot take this task's predictions"):
            check_metrics([metric], None, classes)


def test_a_metric_for_two_classes_is_refused_for_three(tmp_path: Path) -> None:
    """As the hub's f1 without an average: found before the training, if each class is in the sample."""
    (tmp_path / "binary_f1").mkdir()
    (tmp_path / "binary_f1" / "binary_f1.py").write_text(BINARY_F1)
    metric = Metric(str(tmp_path / "binary_f1"), {})
    assert metric.compute(np.array([0, 1, 1]), np.array([0, 1, 0])) == {"f1": pytest.approx(2 / 3)}
    check_metrics([metric], "f1", torch.arange(2, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"cannot take this task's predictions .*multiclass"):
        check_metrics([metric], "f1", torch.arange(3, dtype=torch.int32))


BINARY_F1 = """
import datasets
import evaluate
from sklearn.metrics import f1_score


class BinaryF1(evaluate.Metric):
    def _info(self):
        features = datasets.Features({name: datasets.Value("int32") for name in ("predictions", "references")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"f1": float(f1_score(references, predictions))}
"""


def test_figures_of_numpy_become_plain(tmp_path: Path) -> None:
    """As the hub's f1 gives with average=None: evaluation.json has to hold them."""
    (tmp_path / "arrays").mkdir()
    text = BINARY_F1.replace('{"f1": float(', '{"of": np.float32(0.5), "each": np.array([1, 2]), "f1": np.float64(')
    (tmp_path / "arrays" / "arrays.py").write_text(
        text.replace("import evaluate", "import evaluate\nimport numpy as np")
    )
    figures = Metric(str(tmp_path / "arrays"), {}).compute(np.array([0, 1, 1]), np.array([0, 1, 0]))
    assert json.loads(json.dumps(figures)) == {"of": 0.5, "each": [1, 2], "f1": pytest.approx(2 / 3)}
    assert all(type(value) in (float, list) for value in figures.values())


# A model that has diverged


def test_predictions_that_are_no_numbers_do_not_end_the_run() -> None:
    nowhere = np.full((3, 3), math.nan, dtype=np.float32)
    figures = MULTI.compute(nowhere, np.eye(3, dtype=np.float32))
    assert (figures["macro_auroc"], figures["micro_auroc"], figures["macro_f1"]) == (None, None, 0.0)
    for value in (math.nan, math.inf):
        figures = REGRESSION.compute(np.array([value, 1, 2]), np.array([1.0, 2, 4]))
        assert not math.isfinite(figures["mse"])
        assert (figures["pearson"], figures["spearman"]) == (None, None)
