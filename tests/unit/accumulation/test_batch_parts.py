"""Batches of any kind are cut along their rows, and stay of their kind."""

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BatchEncoding
from transformers.modeling_outputs import BaseModelOutput

from hf_accum.accumulation.batch_parts import (
    first_row,
    last_key,
    leaves,
    map_tensors,
    num_rows,
    row_length,
    rows_of,
    to_device,
)
from hf_accum.errors import UserError

Pair = namedtuple("Pair", "query document")


@dataclass(frozen=True)
class Batch:
    ids: Tensor
    names: list[str]


IDS = torch.arange(12).view(4, 3)
KINDS: dict[str, Any] = {
    "dict": {"input_ids": IDS, "scale": 2.0, "names": ["a", "b", "c", "d"]},
    "encoding": BatchEncoding({"input_ids": IDS}),
    "tuple": (IDS, {"labels": IDS[:, 0]}),
    "named tuple": Pair({"input_ids": IDS}, {"input_ids": IDS + 1}),
    "dataclass": Batch(IDS, ["a", "b", "c", "d"]),
    "output": BaseModelOutput(last_hidden_state=IDS),  # type: ignore[arg-type]
    "tensor": IDS,
    "list": [IDS, IDS * 2],
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_each_tensor_in_a_batch_of_the_same_type(kind: str) -> None:
    batch = KINDS[kind]
    assert num_rows(batch) == 4
    part = rows_of(batch, 1, 3)
    assert type(part) is type(batch)
    assert [(name, t.tolist()) for name, t in leaves(part)] == [(name, t[1:3].tolist()) for name, t in leaves(batch)]
    assert rows_of(batch, 0, 4) is batch
    assert type(to_device(batch, torch.device("cpu"))) is type(batch)


@pytest.mark.parametrize(
    ("batch", "names"),
    [
        (IDS, [""]),
        ({"inner": {"ids": IDS}, "name": "a", "lists": [[IDS], ["b"]]}, ["inner.ids", "lists.0.0"]),
        (Pair(IDS, BatchEncoding({"ids": IDS})), ["query", "document.ids"]),
        (Batch(IDS, ["a"]), ["ids"]),
        (BaseModelOutput(last_hidden_state=IDS, hidden_states=(IDS, IDS)), None),  # type: ignore[arg-type]
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_tensor_is_found_and_changed_by_the_way_to_it(batch: Any, names: list[str] | None) -> None:
    names = names or ["last_hidden_state", "hidden_states.0", "hidden_states.1"]
    assert [name for name, _ in leaves(batch)] == names
    seen: list[str] = []

    def change(name: str, tensor: Tensor) -> Tensor:
        seen.append(name)
        return tensor * 2

    changed = map_tensors(batch, change)
    assert seen == names
    assert type(changed) is type(batch)
    assert all(torch.equal(tensor, IDS * 2) for _, tensor in leaves(changed))
    assert all(tensor is IDS for _, tensor in leaves(batch))


def test_tensors_in_lists_within_the_batch_can_be_left_out() -> None:
    batch = {"images": [IDS], "labels": (IDS, {"boxes": [IDS]})}
    assert [name for name, _ in leaves(batch)] == ["images.0", "labels.0", "labels.1.boxes.0"]
    assert [name for name, _ in leaves(batch, in_lists=False)] == ["labels.0"]
    assert [name for name, _ in leaves([IDS, [IDS]], in_lists=False)] == ["0"]


def test_the_key_is_the_end_of_the_way() -> None:
    assert (last_key("inputs.input_ids"), last_key("labels"), last_key("")) == ("input_ids", "labels", "")


def test_lists_of_a_value_for_each_row_are_cut_and_other_things_stay() -> None:
    part = rows_of(KINDS["dict"], 2, 4)
    assert part["names"] == ["c", "d"]
    assert part["scale"] == 2.0
    assert rows_of(Batch(IDS, ["a", "b", "c", "d"]), 0, 1).names == ["a"]


def test_a_tensor_with_other_rows_cannot_be_cut_and_is_named() -> None:
    batch = {"x": torch.zeros(4, 2), "inner": {"weights": torch.ones(3)}}
    assert rows_of(batch, 0, 4) is batch
    with pytest.raises(UserError, match=r"`inner.weights` of a batch has the shape \(3,\): has to have 4 rows"):
        rows_of(batch, 0, 2)


def test_tensors_in_lists_of_lists_are_moved_too() -> None:
    moved = to_device({"x": [[IDS], [IDS]], "names": [["a"]]}, torch.device("meta"))
    assert [tensor.device.type for inner in moved["x"] for tensor in inner] == ["meta", "meta"]
    assert moved["names"] == [["a"]]


def test_the_first_row_is_a_copy_that_holds_no_more() -> None:
    row = first_row(KINDS["dict"])
    assert row["input_ids"].tolist() == IDS[:1].tolist()
    assert row["input_ids"].untyped_storage().nbytes() == 3 * 8
    whole = {"x": torch.zeros(4, 2), "weights": torch.ones(3)}  # which cannot be cut
    assert num_rows(first_row(whole)) == 4


def boxes(*counts: int) -> list[dict[str, Tensor]]:
    return [{"boxes": torch.arange(4 * n).view(n, 4), "image_id": torch.tensor([n])} for n in counts]


@pytest.mark.parametrize("counts", [(2, 2), (1, 3)])
def test_what_a_list_has_for_each_row_is_cut_as_a_list(counts: tuple[int, int]) -> None:
    """The labels of a detector: an image may have as many boxes as the batch has images."""
    part = rows_of({"pixels": torch.zeros(2, 3), "labels": boxes(*counts)}, 0, 1)
    assert [{key: value.tolist() for key, value in one.items()} for one in part["labels"]] == [
        {key: value.tolist() for key, value in boxes(*counts)[0].items()}
    ]


def test_images_in_a_list_are_not_taken_for_the_rows() -> None:
    """Of other sizes each, and so in no tensor: their first dimension is the colors."""
    batch = {"pixels": [torch.zeros(3, 4, 4), torch.zeros(3, 5, 5)], "labels": torch.tensor([0, 1])}
    assert num_rows(batch) == 2
    assert [tuple(image.shape) for image in rows_of(batch, 1, 2)["pixels"]] == [(3, 5, 5)]


def test_a_list_of_other_things_than_rows_is_not() -> None:
    states = [torch.zeros(4, 2), torch.ones(4, 2)]
    part = rows_of({"x": torch.zeros(4), "states": states}, 1, 2)
    assert [state.tolist() for state in part["states"]] == [[[0.0, 0.0]], [[1.0, 1.0]]]


def test_a_list_of_which_it_cannot_be_told_is_refused() -> None:
    batch = {"x": torch.zeros(2), "states": [torch.zeros(2, 3), torch.ones(2, 3)]}
    assert rows_of(batch, 0, 2) is batch
    with pytest.raises(UserError, match="`states` of a batch is a list of 2 in which each tensor has 2 rows"):
        rows_of(batch, 0, 1)


def test_a_sparse_tensor_cannot_be_cut() -> None:
    with pytest.raises(UserError, match=r"`s` of a batch is a tensor of the layout torch.sparse_coo"):
        rows_of({"x": torch.zeros(2), "s": torch.eye(2).to_sparse()}, 0, 1)


@pytest.mark.parametrize("batch", [{}, {"a": 1}, "text", {"x": torch.tensor(1.0)}])
def test_a_batch_without_rows_is_refused(batch: Any) -> None:
    with pytest.raises(UserError, match="without tensors"):
        num_rows(batch)


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(UserError, match=r"without examples: `x` has the shape \(0, 2\)"):
        num_rows({"x": torch.zeros(0, 2)})


def test_the_length_is_that_of_the_tokens() -> None:
    assert row_length({"pixels": torch.zeros(2, 7), "labels": torch.zeros(2).long(), "input_ids": IDS}) == 3
    assert row_length((torch.zeros(4, 9), IDS)) == 3
    assert row_length({"pixels": torch.zeros(2, 3, 8, 8)}) == 1
