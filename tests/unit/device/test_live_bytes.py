"""Bytes of live tensors, counted as they are made and freed."""

import gc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hf_accum.device.live_bytes import LiveBytes, sum_bytes


def test_live_bytes_of_a_sequence_counted_by_hand() -> None:
    with LiveBytes() as live:
        a = torch.zeros(10)
        assert live.current_bytes == 40
        b = a.view(2, 5)[1].t()  # the same memory
        assert live.current_bytes == 40
        c = a.double()
        assert live.current_bytes == 120
        a.add_(1)
        assert live.current_bytes == 120
        del a
        assert live.current_bytes == 120  # a view of it is alive
        del b
        assert live.current_bytes == 80
        d = (c > 0).nonzero()
        assert live.current_bytes == 80 + d.nbytes == 80
        e, f = torch.zeros(6).max(dim=0)
        assert live.current_bytes == 80 + 4 + 8
        del c, d, e
        assert live.current_bytes == 8
        del f
        assert live.current_bytes == 0
    assert live.peak_bytes == 120
    outside = torch.zeros(1000)
    assert (live.current_bytes, live.peak_bytes) == (0, 120)
    assert outside.sum() == 0


def test_the_timeline_has_the_bytes_after_each_operation_that_made_some() -> None:
    with LiveBytes() as live:
        a = torch.zeros(4)
        b = a + a
        del a
        b.mul_(2)
        c = b[:2]
        d = torch.cat([b, c])
        del b, c
        e = d.sum()
    assert live.timeline == [16, 32, 40, 28]
    assert live.peak_bytes == 40
    assert e.item() == d.sum().item()


def test_what_was_held_before_counts_once_and_until_it_is_gone() -> None:
    held = [torch.zeros(10), torch.zeros(5)]
    live = LiveBytes(held=[*held, held[0][3:], held[1]])
    assert (live.current_bytes, live.peak_bytes) == (60, 60)
    with live:
        held[0].mul_(2).view(5, 2)
        assert live.current_bytes == 60
        held.pop()
        assert live.current_bytes == 40
        kept = torch.zeros(30)
    assert live.peak_bytes == 160
    assert kept.nbytes == 120


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 50)), max_size=30))
def test_any_sequence_of_making_and_dropping_is_counted(steps: list[tuple[int, int]]) -> None:
    """Each of five places holds one tensor, which the next one there replaces."""
    places: dict[int, Tensor] = {}
    current, peak = dict.fromkeys(range(5), 0), 0
    with LiveBytes() as live:
        for place, size in steps:
            if size % 3 == 0:
                places.pop(place, None)
                current[place] = 0
            else:
                made = torch.empty(size)  # while the old one is alive
                peak = max(peak, sum(current.values()) + size * 4)
                places[place] = made
                del made
                current[place] = size * 4
            assert live.current_bytes == sum(current.values())
    assert live.peak_bytes == peak


def test_a_budget_is_an_allocator_that_refuses() -> None:
    with LiveBytes(100) as live:
        a = torch.zeros(20)
        with pytest.raises(torch.OutOfMemoryError, match=r"needs 160 bytes in all, of 100") as caught:
            a.add(1)
        del caught
        gc.collect()
        assert live.current_bytes == 80  # what was refused is gone
        b = torch.zeros(5)
    assert (live.current_bytes, live.peak_bytes) == (100, 100)
    assert (a.sum() + b.sum()).item() == 0


def test_memory_of_several_tensors_is_summed_once() -> None:
    a, b = torch.zeros(4), torch.zeros(3, dtype=torch.float64)
    assert sum_bytes([]) == 0
    assert sum_bytes([a, b, a, a[1:], b.view(3, 1)]) == 40
