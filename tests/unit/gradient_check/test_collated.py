"""Examples of a task as rows."""

from collections.abc import Sequence
from typing import Any

import torch

from hf_accum.accumulation.example import Example
from hf_accum.gradient_check.collated import CollatedRows, of_piece

EXAMPLES = [Example(str(n), n, 2.0 * n, {"n": n}) for n in (3, 1, 4, 2)]


def collate(examples: Sequence[Example], length: int) -> Any:
    return [example.features["n"] for example in examples], length


def test_batches_are_collated_of_examples_at_the_length_of_all() -> None:
    rows = CollatedRows(EXAMPLES, collate, vary=True, most_length=6)
    piece = rows.batch([2, 0])
    assert (piece.batch, piece.num_examples, piece.weight) == (([4, 3], 4), 2, 14.0)
    assert (rows.room, rows.cannot_pad) == (2, "")
    assert rows.padded(2).batch == ([3, 1, 4, 2], 6)
    assert rows.alone(1).batch == ([1], 1)
    assert rows.real().tolist() == (torch.arange(4) < torch.tensor([[3], [1], [4], [2]])).tolist()
    assert rows.counts(piece) == {"examples": 2.0, "weights of the examples": 14.0}
    assert rows.weight(piece) == 14.0
    assert [(what, short.batch) for what, short in rows.short()] == [("the shortest text, of 1 tokens", ([1], 1))]
    assert of_piece(lambda model, batch: torch.tensor(batch[1]))(torch.nn.Identity(), piece) == 4


def test_what_has_one_size_is_not_padded() -> None:
    rows = CollatedRows(EXAMPLES, collate, vary=False, most_length=100)
    assert rows.cannot_pad
    assert (rows.room, list(rows.short())) == (0, [])
