"""Balanced weights of labels: both sides weigh the same."""

import pytest
import torch

from hf_accum.accumulation.losses import BinaryCrossEntropy
from hf_accum.errors import UserError
from hf_accum.tasks.labels import LabelColumn
from hf_accum.tasks.text_classification.positive_weights import balanced_positive_weights, notes_of_weights
from hf_accum.tasks.text_classification.task import build_objective

NAMES, COUNTS = ("a", "b"), {"a": 2, "b": 50}


def test_examples_without_a_label_weigh_as_much_as_those_with_it() -> None:
    weights = balanced_positive_weights(NAMES, COUNTS, 100)
    assert weights == [49.0, 1.0]
    for weight, count in zip(weights, COUNTS.values(), strict=True):
        assert weight * count == 100 - count
    labels = LabelColumn("label", "multi_label_classification", NAMES)
    objective = build_objective(labels, positive_weights="balanced", label_counts=COUNTS, num_examples=100)
    assert isinstance(objective, BinaryCrossEntropy)
    assert objective.positive_weights is not None
    assert torch.equal(objective.positive_weights, torch.tensor(weights, dtype=torch.float64))


def test_labels_that_never_or_always_occur_are_refused() -> None:
    with pytest.raises(UserError, match="`positive_weights` balanced: no row to train on has the label b; give"):
        balanced_positive_weights(NAMES, {"a": 1}, 10)
    with pytest.raises(UserError, match="every row to train on has the label a; give"):
        balanced_positive_weights(NAMES, {"a": 10, "b": 1}, 10)


def test_weights_above_a_hundred_are_said() -> None:
    assert notes_of_weights(NAMES, "balanced", {"a": 2, "b": 50}, 100) == []
    assert notes_of_weights(NAMES, "balanced", {"a": 2, "b": 50}, 1000) == ["positive weights above 100: a 499"]
    assert notes_of_weights(NAMES, [500.0, 1.0], {}, 0) == []
