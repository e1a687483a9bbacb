"""What the ranks agree on for a window, and how they share examples."""

from hypothesis import given
from hypothesis import strategies as st

from hf_accum.data.window_sync import share_out


@given(total=st.integers(0, 50), available=st.lists(st.integers(0, 30), min_size=1, max_size=6))
def test_shares_are_as_even_as_can_be(total: int, available: list[int]) -> None:
    shares = share_out(total, available)
    assert sum(shares) == min(total, sum(available))
    assert all(0 <= share <= most for share, most in zip(shares, available, strict=True))
    # Whoever has less than another, or one less by position, has given all it had.
    most = max(shares)
    assert all(s >= most - 1 or s == a for s, a in zip(shares, available, strict=True))
