"""Intervals against a slow bootstrap: the drawn groups' examples, repeated, by scikit-learn and scipy themselves."""

from typing import Any

import numpy as np
import pytest
import sklearn.metrics
from scipy.sparse import csr_array
from scipy.stats import pearsonr, spearmanr

from hf_accum.evaluation import weighted
from hf_accum.evaluation.bootstrap import intervals, num_rank_resamples, resamples

sk: Any = sklearn.metrics
rng = np.random.default_rng(0)
GROUPS = np.array([0, 0, 1, 2, 2, 2, 3, 4, 5, 5, 6, 7])
TRUTH = rng.integers(0, 3, 12)
CHOSEN = np.where(rng.random(12) < 0.6, TRUTH, rng.integers(0, 3, 12))
SCORES = rng.integers(0, 4, (12, 3)) / 4  # with many ties
WEIGHTS = np.concatenate(list(resamples(GROUPS, 9, seed=3, num_values=50)))
NUMBERS = rng.integers(0, 6, (2, 12)).astype(float)


def drawn(weights: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(len(weights)), weights.astype(int))


def nan_mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else np.nan


def slow(weights: np.ndarray) -> dict[str, Any]:
    rows = drawn(weights)
    truth, chosen, scores = TRUTH[rows], CHOSEN[rows], SCORES[rows]
    both = [c for c in range(3) if 0 < (truth == c).sum() < len(truth)]
    return {
        "accuracy": sk.accuracy_score(truth, chosen),
        "macro_f1": sk.f1_score(truth, chosen, average="macro", zero_division=0),
        "micro_f1": sk.f1_score(truth, chosen, average="micro", zero_division=0),
        "macro_auroc": nan_mean([sk.roc_auc_score(truth == c, scores[:, c]) for c in both]),
        "macro_average_precision": nan_mean([sk.average_precision_score(truth == c, scores[:, c]) for c in both]),
        "micro_auroc": sk.roc_auc_score((truth[:, None] == np.arange(3)).ravel(), scores.ravel()),
        "micro_average_precision": sk.average_precision_score(
            (truth[:, None] == np.arange(3)).ravel(), scores.ravel()
        ),
        "pearson": pearsonr(*NUMBERS[:, rows])[0],
        "spearman": spearmanr(*NUMBERS[:, rows])[0],
    }


def quick(weights: np.ndarray) -> dict[str, np.ndarray]:
    tables = [csr_array((side[:, None] == np.arange(3)).astype(float)) for side in (CHOSEN, TRUTH)]
    truth = TRUTH[:, None] == np.arange(3)
    return {
        "accuracy": weighted.mean(weights, (CHOSEN == TRUTH).astype(float)),
        **weighted.f1_figures(weights, tables[0], tables[1]),
        **weighted.rank_figures_by_label(weights, SCORES, truth),
        **weighted.rank_figures_of_pairs(weights, SCORES, truth),
        **weighted.correlations(weights, *NUMBERS),
    }


def test_weighted_figures_are_those_of_repeated_examples() -> None:
    found = quick(WEIGHTS)
    for index, weights in enumerate(WEIGHTS):
        expected = slow(weights)
        assert {name: values[index] for name, values in found.items()} == pytest.approx(expected, nan_ok=True)


def test_groups_are_drawn_whole_and_as_many_as_there_are() -> None:
    for weights in WEIGHTS:
        of_group = [set(weights[group == GROUPS]) for group in range(8)]
        assert all(len(values) == 1 for values in of_group)
        assert sum(values.pop() for values in of_group) == 8
    assert np.array_equal(WEIGHTS[:7], np.concatenate(list(resamples(GROUPS, 7, seed=3, num_values=1_000))))
    assert not np.array_equal(WEIGHTS, np.concatenate(list(resamples(GROUPS, 9, seed=4, num_values=50))))


def test_intervals_are_the_percentiles_of_the_resamples() -> None:
    def figures(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {**quick(weights), "nothing": np.full(len(weights), np.nan)}

    found = intervals(GROUPS, figures, 9, seed=3)
    each = [slow(weights) for weights in WEIGHTS]
    assert found.pop("nothing") is None
    for name, interval in found.items():
        values = [one[name] for one in each if not np.isnan(one[name])]
        assert interval == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))


def test_groups_widen_the_interval_of_a_mean() -> None:
    """Ten equal rows a patient are no ten times as much: the standard error is that of the patients."""
    values = np.repeat(rng.normal(size=60), 10)

    def means(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {"mean": weighted.mean(weights, values)}

    widths = []
    for groups in (np.repeat(np.arange(60), 10), np.arange(600)):
        interval = intervals(groups, means)["mean"]
        assert interval is not None
        widths.append(interval[1] - interval[0])
    standard_error = values.std() / np.sqrt(60)
    assert widths[0] == pytest.approx(2 * 1.96 * standard_error, rel=0.15)
    assert widths[1] == pytest.approx(2 * 1.96 * standard_error / np.sqrt(10), rel=0.15)


def test_fewer_resamples_where_many_scores_are_sorted() -> None:
    assert [num_rank_resamples(number) for number in (10, 20_000, 100_000, 10**9)] == [1_000, 1_000, 200, 100]
