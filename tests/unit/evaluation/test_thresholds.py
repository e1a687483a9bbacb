"""Thresholds against every one that could be."""

import itertools
from typing import Any

import numpy as np
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_accum.evaluation.thresholds import best_threshold, best_thresholds

sk: Any = sklearn.metrics
pairs = st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=25)


def f1_at(threshold: float, probabilities: np.ndarray, truth: np.ndarray) -> float:
    chosen = probabilities >= threshold
    return 2 * (chosen & truth).sum() / (chosen.sum() + truth.sum())


@settings(max_examples=20)
@given(pairs)
def test_no_threshold_is_better_and_no_equally_good_middle_nearer_to_a_half(found: list[tuple[int, bool]]) -> None:
    probabilities, truth = np.array([p / 20 for p, _ in found]), np.array([is_there for _, is_there in found])
    threshold = best_threshold(probabilities, truth)
    if not truth.any():
        assert threshold == 0.5
        return
    best = f1_at(threshold, probabilities, truth)
    assert abs(best - sk.f1_score(truth, probabilities >= threshold)) < 1e-12
    assert best >= max(f1_at(number / 40, probabilities, truth) for number in range(41)) - 1e-12
    values = [0.0, *sorted(set(probabilities))]
    middles = [0.5, *((low + high) / 2 for low, high in itertools.pairwise(values))]
    for middle in middles:
        if f1_at(middle, probabilities, truth) == best:
            assert abs(threshold - 0.5) <= abs(middle - 0.5)


def test_by_hand() -> None:
    probabilities = np.array([[0.1, 0.1], [0.2, 0.2], [0.4, 0.9], [0.05, 0.95]])
    truth = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    assert best_thresholds(probabilities, truth) == (0.15000000000000002, 0.5)  # a half parts the second label too
    assert best_threshold(np.array([np.nan, 0.5]), np.array([1, 0])) == 0.5
