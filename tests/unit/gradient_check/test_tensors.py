"""The tensors in whatever holds them."""

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BatchEncoding

from hf_accum.gradient_check.tensors import counts_nothing, leaves, mapped

Named = namedtuple("Named", ["x", "labels"])


@dataclass
class Held:
    x: Tensor
    labels: Tensor
    name: str = "held"


X, Y = torch.arange(6.0).reshape(3, 2), torch.tensor([0, 1, -100])


@pytest.mark.parametrize(
    "batch",
    [
        {"x": X, "labels": Y},
        BatchEncoding({"x": X, "labels": Y}),
        Named(X, Y),
        Held(X, Y),
        ({"x": X}, {"labels": Y}),
        {"inner": {"x": X}, "labels": Y, "ids": "abc"},
    ],
    ids=lambda batch: type(batch).__name__,
)
def test_a_batch_keeps_its_make(batch: Any) -> None:
    assert [name for name, _ in leaves(batch)] == ["x", "labels"]
    twice = mapped([batch, batch], lambda name, found: torch.cat(found))
    assert type(twice) is type(batch)
    assert [len(tensor) for _, tensor in leaves(twice)] == [6, 6]
    assert [len(tensor) for _, tensor in leaves(batch)] == [3, 3]


def test_labels_are_known_by_name_or_by_what_is_in_them() -> None:
    assert counts_nothing("labels", torch.tensor([1]))
    assert counts_nothing("1", Y)
    assert not counts_nothing("1", torch.tensor([1]))
    assert not counts_nothing("labels", X)
