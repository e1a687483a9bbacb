"""Shares that hold after any number of examples."""

from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from hf_accum.config.datasets import whole_weights
from hf_accum.data.interleaving import Shares

weights = st.lists(st.integers(1, 25), min_size=1, max_size=6)


def order(shares: Shares, number: int) -> list[int]:
    taken = [0] * len(shares.weights)
    found: list[int] = []
    for _ in range(number):
        one = shares.following(taken)
        taken[one] += 1
        found.append(one)
    return found


@settings(max_examples=50)
@given(weights=weights)
def test_after_any_number_each_has_its_share_within_one(weights: list[int]) -> None:
    shares = Shares(whole_weights(weights))
    total = sum(weights)
    found = order(shares, 2 * shares.total)
    counts = [0] * len(weights)
    for number, one in enumerate(found, 1):
        counts[one] += 1
        assert all(abs(c - Fraction(w * number, total)) < 1 for c, w in zip(counts, weights, strict=True))
    assert found[: shares.total] == found[shares.total :]  # it repeats


@settings(max_examples=30)
@given(weights=weights)
def test_positions_and_counts_are_those_of_the_order(weights: list[int]) -> None:
    shares = Shares(whole_weights(weights))
    counts = [0] * len(weights)
    for position, one in enumerate(order(shares, 2 * shares.total + 3), 1):
        counts[one] += 1
        assert shares.counts(position) == counts
        assert shares.position(one, counts[one]) == position


def test_an_order_written_down() -> None:
    assert "".join("AB"[one] for one in order(Shares((7, 3)), 10)) == "AABAABAAAB"
