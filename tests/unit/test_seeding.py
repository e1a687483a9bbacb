"""Derived seeds: the same ever after, unrelated to each other."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_accum.seeding import derive_seed

parts = st.lists(st.integers() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x1f")))


@pytest.mark.parametrize(
    ("given_parts", "seed"),
    [
        ((0,), 6_711_488_920_161_924_273),
        (("0",), 7_229_554_788_928_137_032),
        ((0, "model"), 7_250_982_863_315_377_352),
        ((7, "block", 0, 0, 3), 4_084_651_913_558_414_657),
    ],
)
def test_seeds_of_earlier_runs_are_the_seeds_of_today(given_parts: Sequence[int | str], seed: int) -> None:
    """Written down once: a run is repeated with another version of Python, or of this package."""
    assert derive_seed(*given_parts) == seed


@given(parts, parts)
def test_other_parts_give_another_seed(one: list[int | str], other: list[int | str]) -> None:
    assert (derive_seed(*one) == derive_seed(*other)) == (one == other)


@given(st.integers())
def test_a_number_is_not_its_text(number: int) -> None:
    assert derive_seed(number) != derive_seed(str(number))
    assert derive_seed(number, 1) != derive_seed(number) != derive_seed(1, number, 1)


@given(parts)
def test_seeds_are_what_every_generator_takes(some: list[int | str]) -> None:
    seed = derive_seed(*some)
    assert 0 <= seed < 2**63
    assert torch.Generator().manual_seed(seed).initial_seed() == seed
    np.random.Generator(np.random.PCG64(seed))


def test_all_bits_vary() -> None:
    """Each of the 63 bits is set in about half of 4,000 seeds of neighbouring numbers."""
    seeds = np.array([derive_seed(0, "window", step) for step in range(4000)], dtype=np.uint64)
    shares = [(seeds >> np.uint64(bit) & np.uint64(1)).mean() for bit in range(63)]
    assert max(abs(share - 0.5) for share in shares) < 5 * 0.5 / 4000**0.5
