"""From logits to decisions, as torch computes them; a temperature changes no decision of one label."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_accum.evaluation.decisions import Decisions, Fitted
from hf_accum.evaluation.judge import Judged

NAMES = ("a", "b", "c")
rng = np.random.default_rng(1)
LOGITS = rng.normal(size=(50, 3)).astype(np.float32) * 3


def judged(logits: np.ndarray, truth: Any) -> Judged:
    ones = np.ones(len(logits))
    return Judged([f"0:{i}" for i in range(len(logits))], np.arange(len(logits)), ones, logits, np.array(truth), 0.5)


def fitted(temperature: float | None = None, thresholds: tuple[float, ...] | None = None) -> Fitted:
    return Fitted(temperature, thresholds, 50, (1, 2, 3))


@pytest.mark.parametrize("temperature", [None, 0.5, 7.0])
def test_probabilities_are_those_of_torch(temperature: float | None) -> None:
    scaled = torch.from_numpy(LOGITS).double() / (temperature or 1.0)
    for several, expected in ((False, scaled.softmax(-1)), (True, scaled.sigmoid())):
        found = Decisions(NAMES, several, fitted(temperature)).probabilities(LOGITS)
        assert found == pytest.approx(expected.numpy())


@given(st.floats(0.02, 50.0))
def test_a_temperature_changes_no_decision(temperature: float) -> None:
    for several in (False, True):
        plain, scaled = (Decisions(NAMES, several, f) for f in (None, fitted(temperature)))
        assert np.array_equal(plain.chosen(LOGITS), scaled.chosen(LOGITS))


def test_what_is_fitted_is_by_name_and_used() -> None:
    truth = (LOGITS + rng.normal(size=LOGITS.shape) > 2).astype(np.float32)
    truth[:, 2] = 0
    decisions = Decisions(NAMES, True).fit(judged(LOGITS, truth), temperature=True, thresholds=True)
    found = decisions.as_json()
    assert found["num_positives"] == {"a": truth[:, 0].sum(), "b": truth[:, 1].sum(), "c": 0}
    assert (found["num_examples"], found["thresholds"]["c"]) == (50, 0.5)
    assert found["temperature"] != 1
    expected = decisions.probabilities(LOGITS) >= np.array(list(found["thresholds"].values()))
    assert np.array_equal(decisions.chosen(LOGITS), expected)
    assert Decisions(NAMES, True).as_json() == {}
    assert (
        "thresholds"
        not in Decisions(NAMES, True).fit(judged(LOGITS, truth), temperature=True, thresholds=False).as_json()
    )


def test_confidences_are_those_of_the_decisions_made() -> None:
    truth = LOGITS.argmax(1)
    truth[0] = (truth[0] + 1) % 3
    confidences, is_right = Decisions(NAMES, False).confidences(judged(LOGITS, truth))
    assert confidences == pytest.approx(torch.from_numpy(LOGITS).double().softmax(-1).amax(-1).numpy())
    assert is_right.tolist() == [False] + [True] * 49
    several = Decisions(NAMES, True, fitted(thresholds=(0.9, 0.5, 0.1)))
    logits = np.array([[0.0, 1.0, -1.0]], dtype=np.float32)  # 0.5 is below 0.9: not predicted; 0.27 is above 0.1
    confidences, is_right = several.confidences(judged(logits, [[0.0, 1.0, 0.0]]))
    assert confidences == pytest.approx([0.5, 0.7310586, 0.2689414])
    assert is_right.tolist() == [True, True, False]
