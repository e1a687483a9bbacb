"""A window that is run: scales, seeds and counts of its micro-batches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from window_cases import make_window

from hf_accum.accumulation.example import Example


def examples_of(lengths: list[int]) -> list[Example]:
    return [Example(f"{i}", length, 1.0, {}) for i, length in enumerate(lengths)]


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=30),
    size=st.integers(1, 9),
)
def test_scales_undo_the_division_of_accelerate(lengths: list[int], size: int) -> None:
    examples = examples_of(lengths)
    window = make_window(examples, examples[0], whole=examples * 2)
    micro_batches = list(window.micro_batches(size))
    for index, micro_batch in enumerate(micro_batches):
        assert (micro_batch.index, micro_batch.count) == (index, len(micro_batches))
        seen = micro_batch.scale / micro_batch.count  # accelerate's backward
        assert seen == pytest.approx(1 / window.window.num_items, rel=1e-15)
    padded = sum(len(m.examples) * m.examples[0].length for m in micro_batches)
    assert (window.num_micro_batches, window.num_padded_tokens) == (len(micro_batches), padded)
    assert len({m.seed for m in micro_batches}) == len(micro_batches)


def test_a_rank_without_examples_runs_its_stand_in_with_weight_zero() -> None:
    whole = examples_of([3, 4])
    window = make_window([], whole[0], rank=1, whole=whole)
    (micro_batch,) = window.micro_batches(8)
    assert (micro_batch.examples, micro_batch.scale) == ((whole[0],), 0.0)
    assert (micro_batch.index, micro_batch.count) == (0, 1)
    assert (window.num_micro_batches, window.num_padded_tokens) == (0, 0)
    window.note(torch.tensor(7.0))
    assert window.loss_sum() == 0.0


def test_random_numbers_differ_by_rank_and_step() -> None:
    whole = examples_of([3, 4])
    seeds = set()
    for rank in range(3):
        window = make_window(whole, whole[0], rank=rank, whole=whole)
        seeds |= {m.seed for m in window.micro_batches(1)}
    assert len(seeds) == 6
