"""Curves in bins: nothing extreme is hidden, and a mean is the mean."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hf_accum.report.binning import binned

NUMBERS = st.one_of(st.floats(-1e6, 1e6), st.just(float("nan")), st.just(float("inf")))
CURVES = st.lists(st.tuples(NUMBERS, st.floats(0, 100)), min_size=1, max_size=60)


@given(CURVES, st.integers(1, 20))
def test_bins_are_as_counted_by_hand(curve: list[tuple[float, float]], most: int) -> None:
    steps = np.arange(1, len(curve) + 1) * 3
    values, weights = (np.array(column) for column in zip(*curve, strict=True))
    found = binned(steps, values, weights, most)
    assert len(found.steps) <= most
    width = found.steps_per_bin
    for index in range(len(found.steps)):
        inside = curve[index * width : (index + 1) * width]
        known = [(value, weight) for value, weight in inside if np.isfinite(value)]
        assert found.steps[index] == np.mean(steps[index * width : (index + 1) * width])
        if not known:
            assert np.isnan([found.low[index], found.mean[index], found.high[index]]).all()
            continue
        assert (found.low[index], found.high[index]) == (min(v for v, _ in known), max(v for v, _ in known))
        total = sum(weight for _, weight in known)
        if total:
            mean = sum(value * weight for value, weight in known) / total
            np.testing.assert_allclose(found.mean[index], mean, rtol=1e-9, atol=1e-6)
    assert len(found.steps) * width >= len(curve) > (len(found.steps) - 1) * width  # all are in a bin


def test_one_step_in_ten_thousand_is_still_seen() -> None:
    values = np.ones(10_000)
    values[7776] = 40.0
    found = binned(np.arange(10_000), values)
    assert len(found.steps) <= 300
    assert found.high.max() == 40.0
    assert found.mean.max() < 3


def test_a_rate_is_that_of_all_steps_together() -> None:
    tokens, seconds = np.array([100.0, 900.0]), np.array([1.0, 3.0])
    assert binned(np.array([1, 2]), tokens / seconds, seconds, most=1).mean[0] == 1000 / 4
