"""What all ranks do together: an error of one is an error of all."""

from thread_ranks import ThreadRanks, on_ranks

from hf_accum.distributed.collectives import on_all_ranks
from hf_accum.distributed.ranks import OneRank
from hf_accum.errors import RankFailed


def test_an_error_on_one_rank_is_an_error_on_all() -> None:
    def work(ranks: ThreadRanks) -> list[int]:
        def mine() -> int:
            if ranks.index == 1:
                raise ValueError("no disk")
            return ranks.index

        return on_all_ranks(ranks, mine)

    outcomes = on_ranks(3, work)
    assert isinstance(outcomes[1], ValueError)
    for rank in (0, 2):
        assert isinstance(outcomes[rank], RankFailed)
        assert str(outcomes[rank]) == "rank 1 failed: ValueError: no disk"
    assert on_ranks(3, lambda ranks: on_all_ranks(ranks, lambda: ranks.index * 2)) == [[0, 2, 4]] * 3
    assert on_all_ranks(OneRank(), lambda: "x") == ["x"]
