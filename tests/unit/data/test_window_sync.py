"""What the ranks agree on for a window, and how they share examples."""

from hypothesis import given
from hypothesis import strategies as st
from thread_ranks import on_ranks, run_ranks

from hf_accum.accumulation.example import Example
from hf_accum.data.window_sync import agree, leave, share_out
from hf_accum.distributed.ranks import OneRank
from hf_accum.errors import RankFailed, ReadingFailed


@given(total=st.integers(0, 50), available=st.lists(st.integers(0, 30), min_size=1, max_size=6))
def test_shares_are_as_even_as_can_be(total: int, available: list[int]) -> None:
    shares = share_out(total, available)
    assert sum(shares) == min(total, sum(available))
    assert all(0 <= share <= most for share, most in zip(shares, available, strict=True))
    # Whoever has less than another, or one less by position, has given all it had.
    most = max(shares)
    assert all(s >= most - 1 or s == a for s, a in zip(shares, available, strict=True))


def part(rank: int) -> list[Example]:
    return [Example(f"{rank}:{number}", 2 + rank, 0.25, {}, num_truncated_tokens=rank) for number in range(rank + 1)]


def test_the_facts_are_sums_over_the_ranks_and_the_digest_is_of_the_examples_alone() -> None:
    found = run_ranks(3, lambda ranks: agree(ranks, part(ranks.index), ranks.index, None, ranks.index == 1))
    assert found[0] == found[1] == found[2]
    facts = found[0]
    assert (facts.counts, facts.announced, facts.num_examples) == ([1, 2, 3], [0, 1, 2], 6)
    assert (facts.num_items, facts.num_tokens) == (6 * 0.25, 1 * 2 + 2 * 3 + 3 * 4)
    assert (facts.num_truncated_examples, facts.num_truncated_tokens) == (5, 2 * 1 + 3 * 2)
    assert facts.is_stop_asked
    assert not facts.is_end
    together = [example for rank in (2, 0, 1) for example in part(rank)]
    assert agree(OneRank(), together, 0, None).digest == facts.digest
    assert agree(OneRank(), together[1:], 0, None).digest != facts.digest


def test_it_is_the_end_where_no_rank_has_or_announces_anything() -> None:
    assert agree(OneRank(), [], 0, None).is_end
    assert not agree(OneRank(), [], 1, None).is_end


def test_an_error_of_one_rank_and_a_rank_that_leaves_end_the_others() -> None:
    failed = on_ranks(2, lambda ranks: agree(ranks, [], 0, ValueError("disk") if ranks.index else None))
    assert isinstance(failed[0], ReadingFailed)
    assert "on rank 1" in str(failed[0])
    assert isinstance(failed[1], ValueError)
    left = on_ranks(2, lambda ranks: leave(ranks) if ranks.index else agree(ranks, [], 0, None))
    assert isinstance(left[0], RankFailed)
    assert "rank 1 has stopped" in str(left[0])
