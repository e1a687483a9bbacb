"""Batches made anew of examples."""

from typing import Any

import numpy as np
import pytest
import torch
from planted import batches

from hf_accum.errors import UserError
from hf_accum.gradient_check.rows import TensorRows, counts_nothing


def test_batches_of_other_lengths_are_one_padded_batch() -> None:
    data = [{name: of for name, of in batch.items() if name != "attention_mask"} for batch in batches()]
    data[1] = {name: of[:, :5] for name, of in data[1].items()}
    rows = TensorRows(data, pad_token_id=29)
    whole = rows.whole
    assert whole["input_ids"].shape == whole["labels"].shape == (8, 9)
    assert (whole["input_ids"][4:, 5:] == 29).all()
    assert (whole["labels"][4:, 5:] == -100).all()
    assert torch.equal(whole["attention_mask"].sum(1), torch.tensor([9] * 4 + [5] * 4))


def test_examples_are_taken_padded_more_and_alone() -> None:
    rows = TensorRows(batches(), pad_token_id=0)
    assert rows.lengths == [7, 4, 2, 9, 5, 3, 8, 6]
    assert torch.equal(rows.batch([3, 3, 0])["input_ids"], rows.whole["input_ids"][[3, 3, 0]])
    longer = rows.padded(rows.room)
    assert longer["input_ids"].shape == (8, 16)
    assert (longer["labels"][:, 9:] == -100).all()
    assert (longer["attention_mask"][:, 9:] == 0).all()
    alone = rows.alone(2)
    assert alone["input_ids"].shape == (1, 2)
    assert alone["attention_mask"].all()
    assert rows.real().sum() == sum(rows.lengths)


def test_the_weight_is_that_of_labels_that_count_or_of_examples_or_ones_own() -> None:
    rows = TensorRows(batches(), pad_token_id=0)
    assert rows.weight(rows.whole) == sum(rows.lengths)
    assert rows.weight(rows.batch([0, 1])) == 11
    assert TensorRows(batches(False)).weight(rows.whole) == 44
    assert TensorRows([{"x": torch.ones(5, 2)}]).weight({"x": torch.ones(5, 2)}) == 5
    assert TensorRows(batches(), lambda batch: torch.tensor(2.5)).weight(rows.whole) == 2.5


@pytest.mark.parametrize("weight", [None, torch.ones(2), float("nan"), -1.0])
def test_a_weight_that_is_no_number_is_refused(weight: Any) -> None:
    rows = TensorRows(batches(), lambda batch: weight)
    with pytest.raises(UserError, match=r"the weight of a batch is .*: has to be a number from 0 on"):
        rows.weight(rows.whole)


def test_short_texts_are_the_shortest_that_can_be() -> None:
    short = dict(TensorRows(batches(), pad_token_id=0).short())
    assert [batch["input_ids"].shape for batch in short.values()] == [(1, 1), (1, 2), (1, 9)]
    assert (short["a text of which no label counts"]["labels"] == -100).all()
    assert list(dict(TensorRows([{"x": torch.ones(5, 2)}]).short())) == []


def test_labels_are_known_by_name_or_by_what_is_in_them() -> None:
    assert counts_nothing("labels", torch.tensor([1]))
    assert counts_nothing("1.labels", torch.tensor([1]))
    assert counts_nothing("1", torch.tensor([0, 1, -100]))
    assert not counts_nothing("1", torch.tensor([1]))
    assert not counts_nothing("labels", torch.ones(1))


def test_tensors_of_one_place_in_different_containers_are_not_taken_for_each_other() -> None:
    """The second of the inputs and the second of the batch are both called 1 by what holds them."""
    inputs, labels = (torch.arange(8).view(4, 2), torch.ones(4, 2).long()), torch.tensor([0, 1, -100, -100])
    rows = TensorRows([(inputs, labels)])
    assert rows.weight(rows.whole) == 2


@pytest.mark.parametrize(
    "data",
    [
        [{"x": torch.ones(4, 2)}, {"y": torch.ones(4, 2)}],
        [{"x": torch.ones(4, 2)}, {"x": torch.ones(4, 2), "y": torch.ones(4, 2)}],
        [{"x": torch.ones(4, 2)}, {"x": torch.ones(4)}],
    ],
)
def test_batches_that_hold_other_things_cannot_be_one(data: Any) -> None:
    with pytest.raises(UserError, match="cannot be one batch"):
        TensorRows(data)


def test_more_padding_is_what_padding_holds() -> None:
    (batch,) = batches()[:1]
    padding = batch["attention_mask"] == 0
    weights = torch.rand(batch["labels"].shape) * batch["attention_mask"]
    given = batch | {"labels": batch["labels"].masked_fill(padding, -1), "weights": weights}
    longer_one = {name: torch.cat([of, of], 1)[:2] for name, of in given.items() if name != "attention_mask"}
    rows = TensorRows([given, longer_one | {"attention_mask": torch.ones(2, 18).long()}], pad_token_id=0)
    assert (rows.whole["labels"][:4, 9:] == -1).all()
    longer = rows.padded(3)
    assert (longer["labels"][:, -3:] == -1).all()
    assert longer["weights"].shape == longer["labels"].shape
    assert (longer["weights"][:, -3:] == 0).all()
    assert rows.weight(longer) == rows.weight(rows.whole) > 0


@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0, 4.0], np.ones(4)])
def test_numbers_that_are_no_tensor_are_refused(values: Any) -> None:
    with pytest.raises(UserError, match="'scores' of the type"):
        TensorRows([batches()[0] | {"scores": values}])
