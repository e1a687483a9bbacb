"""A sum, a mean of what, or neither: by values of the loss."""

from typing import Any

import planted
import pytest
import torch
import torch.nn.functional as F
from planted import batches, encoder

from hf_accum.gradient_check.loss_shape import Shape, shape_of
from hf_accum.gradient_check.probe import Probe
from hf_accum.gradient_check.rows import TensorRows


def shape(loss: Any, of_tokens: bool) -> Shape:
    return shape_of(Probe(encoder(), loss), TensorRows(batches(of_tokens), pad_token_id=0))


@pytest.mark.parametrize(
    ("loss", "of_tokens", "divisor"),
    [(planted.mean, False, "examples"), (planted.mean, True, "labels that count"), (planted.weighted_mean, True, "")],
)
def test_a_mean_is_told_by_what_it_divides_by(loss: Any, of_tokens: bool, divisor: str) -> None:
    found = shape(loss, of_tokens)
    assert found.is_mean
    assert found.divisor == divisor
    assert not found.depends_on_output
    assert found.numbers["loss of all twice / once"] == pytest.approx(1.0)


def test_a_divisor_of_the_output_is_told_from_one_of_the_labels() -> None:
    found = shape(planted.weighted_by_predicted, False)
    assert found.is_mean
    assert found.depends_on_output


@pytest.mark.parametrize(
    ("loss", "is_interaction"),
    [(planted.summed, False), (planted.by_root, False), (planted.in_batch_negatives, True)],
)
def test_what_is_no_mean_is_one_of_examples_that_change_each_other_or_not(loss: Any, is_interaction: bool) -> None:
    found = shape(loss, False)
    assert not found.is_mean
    assert found.is_interaction == is_interaction


@pytest.mark.parametrize("little", [1e-8, 1e-6])
def test_a_little_added_to_the_divisor_against_0_is_a_mean_all_the_same(little: float) -> None:
    def mean(model: Any, batch: Any) -> Any:
        return planted.summed(model, batch) / ((batch["labels"] != -100).sum() + little)

    found = shape(mean, True)
    assert (found.is_mean, found.divisor) == (True, "labels that count")


@pytest.mark.parametrize("least", [0, 1])
def test_an_example_without_labels_hides_no_mean(least: int) -> None:
    data = batches()
    data[0]["labels"][0] = data[0]["labels"][3] = -100

    def mean(model: Any, batch: Any) -> Any:
        return planted.summed(model, batch) / (batch["labels"] != -100).sum().clamp(min=least)

    found = shape_of(Probe(encoder(), mean), TensorRows(data, pad_token_id=0))
    assert (found.is_mean, found.divisor) == (True, "labels that count")


def test_examples_that_see_each_other_only_among_three_are_found() -> None:
    def contrastive(model: Any, batch: Any) -> Any:
        vectors = F.normalize(planted.logits(model, batch), dim=-1)
        own = torch.eye(len(vectors), dtype=torch.bool)
        scores = (vectors @ vectors.T).masked_fill(own, -1e9).log_softmax(-1)
        return -(scores * (batch["labels"][:, None] == batch["labels"]) * ~own).sum()

    assert shape(contrastive, False).is_interaction
