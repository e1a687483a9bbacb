"""Calibration against a bin-by-bin count, and the temperature against a search over many."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, log_softmax
from sklearn.metrics import log_loss

from hf_accum.evaluation.calibration import (
    expected_calibration_error,
    fit_temperature,
    is_extreme,
    reliability_table,
)

rng = np.random.default_rng(0)


@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), min_size=1, max_size=60))
def test_the_error_is_the_weighted_distance_bin_by_bin(pairs: list[tuple[int, bool]]) -> None:
    """Confidences on the edges of bins too: they belong to the lower bin, as Guo and others write it."""
    confidences, is_right = np.array([c / 30 for c, _ in pairs]), np.array([right for _, right in pairs])
    error = 0.0
    for number in range(1, 16):
        low, high = (number - 1) / 15, number / 15
        here = [
            (c, right)
            for c, right in zip(confidences, is_right, strict=True)
            if (low + 1e-9 < c <= high + 1e-9) or (number == 1 and c == 0)
        ]
        if here:
            error += len(here) / len(pairs) * abs(np.mean([c for c, _ in here]) - np.mean([r for _, r in here]))
    # A third of a bin's width off an edge by rounding is in no other bin.
    table = reliability_table(confidences - 1e-12, is_right)
    assert sum(row["count"] for row in table) == len(pairs)
    assert expected_calibration_error(table) == pytest.approx(error, abs=1e-9)


def test_a_table_by_hand() -> None:
    table = reliability_table(np.array([1.0, 1.0, 0.5, 0.97]), np.array([True, False, True, True]))
    assert (table[-1]["count"], table[-1]["accuracy"]) == (3, pytest.approx(2 / 3))
    assert table[0] == {"above": 0.0, "to": pytest.approx(1 / 15), "count": 0, "confidence": None, "accuracy": None}
    assert expected_calibration_error(table) == pytest.approx((3 * abs(2.97 / 3 - 2 / 3) + 0.5) / 4)
    assert expected_calibration_error(reliability_table(np.array([np.nan]), np.array([True]))) is None


@pytest.mark.parametrize("factor", [0.2, 1.0, 4.0])
def test_the_temperature_that_logits_were_multiplied_by_is_found(factor: float) -> None:
    logits = rng.normal(size=(4_000, 3)) * 2
    truth = np.array([rng.choice(3, p=row) for row in np.exp(log_softmax(logits, axis=1))])
    temperature = fit_temperature(logits * factor, truth)
    assert temperature == pytest.approx(factor, rel=0.1)
    each: list[Any] = [
        np.exp(log_softmax(logits * factor / t, axis=1)) for t in (temperature, *np.geomspace(0.1, 10, 41))
    ]
    losses = [log_loss(truth, p) for p in each]
    assert losses[0] == min(losses)


def test_of_several_labels_each_decision_counts() -> None:
    logits = rng.normal(size=(3_000, 2)) * 2
    truth = rng.random(logits.shape) < expit(logits)
    assert fit_temperature(logits * 3, truth) == pytest.approx(3, rel=0.1)
    assert fit_temperature(np.full((2, 2), np.nan), np.array([0, 1])) == 1.0
    always_right = fit_temperature(np.eye(3), np.arange(3))
    assert is_extreme(always_right)
    assert not is_extreme(1.0)
