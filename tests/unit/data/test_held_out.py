"""Which groups are held out: a share that is the same everywhere, and of a smaller one all."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_accum.data.held_out import HeldOut, by_hash
from hf_accum.data.survey import hash_of_group


def is_held_out(group: Any, fraction: float) -> bool:
    return hash_of_group(group) in by_hash(fraction)


@given(group=st.text(min_size=1), smaller=st.floats(0, 1), larger=st.floats(0, 1))
def test_a_larger_share_holds_out_the_groups_of_a_smaller_one_too(group: str, smaller: float, larger: float) -> None:
    smaller, larger = sorted((smaller, larger))
    if is_held_out(group, smaller):
        assert is_held_out(group, larger)


@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.5, 0.9])
def test_the_share_is_what_was_asked_for(fraction: float) -> None:
    """Of 10,000 groups, within four standard deviations of a binomial."""
    n = 10_000
    held_out = sum(is_held_out(f"patient {i}", fraction) for i in range(n))
    assert abs(held_out - n * fraction) < 4 * math.sqrt(n * fraction * (1 - fraction))


def test_the_split_is_the_same_everywhere_and_ever() -> None:
    """Figures of another day or machine are about the same held-out rows: these, written down once."""
    held_out = [i for i in range(20) if is_held_out(f"disease {i}", 0.5)]
    assert held_out == [0, 1, 3, 4, 5, 7, 8, 9, 10, 13, 14, 16, 19]


def test_many_groups_are_told_at_once() -> None:
    held_out = HeldOut(below=10, groups=frozenset([2**63 + 5, 20]))
    groups = [0, 9, 10, 20, 2**63 + 5, 2**64 - 1]
    assert held_out.of(np.array(groups, dtype=np.uint64)).tolist() == [True, True, False, True, True, False]
