"""Reading ahead: each rank its share of every example, in order, with what ends behind it."""

from collections import Counter
from typing import Any

import pytest
from numbered_rows import encode, prepare, source_of

from hf_accum.data.reading import PieceOfData, Reader
from hf_accum.data.shuffling import Order, Place
from hf_accum.data.stream_state import StreamState
from hf_accum.distributed.ranks import OneRank
from hf_accum.errors import UserError


def reader(sizes: list[int], bad: frozenset[str] = frozenset(), **how: Any) -> Reader[str]:
    order = Order(source_of(sizes, bad), prepare, seed=0, block_size=how.pop("block_size", 1), on_bad_row="skip")
    values: dict[str, Any] = {
        "draw": None,
        "ranks": OneRank(),
        "effective_batch_size": 4,
        "num_epochs": 1,
        "start": StreamState(),
    }
    return Reader(order, encode, **values | how)


class OneOf(OneRank):
    """A rank of several that talks to nobody."""

    def __init__(self, index: int, count: int) -> None:
        self.index, self.count = index, count  # type: ignore[misc]


def ids(piece: PieceOfData) -> list[str]:
    return [example.id for example in piece.examples]


def test_windows_are_full_and_the_last_one_has_what_is_left() -> None:
    *pieces, end = reader([5, 4]).windows()
    assert [ids(piece) for piece in pieces] == [
        ["0:0", "0:1", "0:2", "0:3"],
        ["0:4", "1:0", "1:1", "1:2"],
        ["1:3"],
    ]
    assert [piece.window_size for piece in pieces] == [4, 4, 1]
    assert (end.ends_epoch, ids(end)) == (True, [])


def test_ranks_take_turns_in_a_window_of_the_common_order() -> None:
    of_ranks = [list(reader([5, 4], ranks=OneOf(rank, 3)).windows())[:-1] for rank in range(3)]
    for window in zip(*of_ranks, strict=True):
        dealt = [ids(piece) for piece in window]
        turns = [dealt[number % 3][number // 3] for number in range(sum(map(len, dealt)))]
        assert len(turns) == window[0].window_size
        assert turns == sorted(turns)


def test_from_the_place_of_a_window_come_the_windows_behind_it() -> None:
    whole = list(reader([13], block_size=5).windows())
    for step, piece in enumerate(whole[:-2], 1):
        rest = reader([13], block_size=5, start=StreamState(step, piece.places[0])).windows()
        assert [ids(piece) for piece in rest] == [ids(piece) for piece in whole[step:]]


def test_bad_rows_are_told_once_and_those_behind_the_last_window_with_the_end() -> None:
    pieces = list(reader([9], frozenset({"0:1", "0:8"})).windows())
    assert [piece.bad_rows.total() for piece in pieces] == [1, 0, 1]
    assert sum((piece.bad_rows for piece in pieces), Counter()).total() == 2


def test_own_shards_come_in_chunks_with_a_place_behind_each_example() -> None:
    pieces = list(reader([150], block_size=100).shards())
    assert [len(piece.examples) for piece in pieces] == [64, 36, 50, 0]
    assert [place.taken for place in pieces[1].places] == list(range(65, 101))
    assert pieces[-1].ends_epoch
    assert sorted(i for piece in pieces for i in ids(piece)) == sorted(f"0:{row}" for row in range(150))


def test_a_pass_without_examples_is_refused_unless_it_was_gone_on_with() -> None:
    with pytest.raises(UserError, match="the dataset has no usable example"):
        list(reader([2], frozenset({"0:0", "0:1"})).windows())
    (end,) = reader([2], start=StreamState(1, Place(block=1, row=2, shard=0))).windows()
    assert end.ends_epoch


def test_what_is_drawn_knows_its_pass() -> None:
    from dataclasses import replace

    drawn = reader([2], num_epochs=2, draw=lambda e, epoch: replace(e, features={"epoch": epoch})).windows()
    assert [e.features["epoch"] for piece in drawn for e in piece.examples] == [0, 0, 1, 1]
