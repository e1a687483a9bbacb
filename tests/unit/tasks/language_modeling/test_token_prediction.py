"""Perplexity and the metrics by which a checkpoint may be the best."""

import pytest

from hf_accum.run.checkpoint import BestCheckpoint
from hf_accum.tasks.language_modeling.token_prediction import TokenPrediction, perplexity


class OfMasks(TokenPrediction):
    accuracy = "masked_accuracy"


def test_perplexity() -> None:
    assert perplexity(0.0) == 1.0
    assert perplexity(1e6) == float("inf")


def test_an_unknown_best_metric_is_refused() -> None:
    task = OfMasks()
    task.check_metrics("perplexity")
    with pytest.raises(ValueError, match="`best_metric` f1: has to be one of loss, masked_accuracy, perplexity"):
        task.check_metrics("f1")


def test_a_lower_perplexity_is_better() -> None:
    best = BestCheckpoint("perplexity")
    assert best.update(1, {"perplexity": 30.0})
    assert not best.update(2, {"perplexity": 40.0})
    assert best.update(3, {"perplexity": 20.0})
