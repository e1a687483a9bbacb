"""Every example exactly once an epoch, whatever the shards, ranks and windows; windows as full as can be."""

import json
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered_rows import encode, make_stream, prepare, source_of, windows_of_ranks
from thread_ranks import ThreadRanks, on_ranks, run_ranks

from hf_accum.accumulation.example import Example
from hf_accum.accumulation.window import Window
from hf_accum.data.stream import Split, WindowStream
from hf_accum.distributed.ranks import OneRank
from hf_accum.errors import RankFailed

SPLITS: tuple[Split, ...] = ("examples", "shards")


def ids_of_step(windows: list[list[Window]], step: int) -> list[str]:
    return [e.id for of_rank in windows for e in of_rank[step].examples]


shards = st.lists(st.integers(0, 23), min_size=1, max_size=6).filter(any)


@pytest.mark.parametrize("split", SPLITS)
@settings(max_examples=60)
@given(
    shard_sizes=shards,
    num_ranks=st.integers(1, 4),
    effective_batch_size=st.integers(1, 20),
    block=st.integers(1, 40),
    num_epochs=st.integers(1, 2),
)
def test_each_example_is_used_once_an_epoch_in_full_windows(
    split: Split,
    shard_sizes: list[int],
    num_ranks: int,
    effective_batch_size: int,
    block: int,
    num_epochs: int,
) -> None:
    windows = windows_of_ranks(
        shard_sizes,
        num_ranks,
        effective_batch_size,
        split=split,
        shuffle_block_size=block,
        num_epochs=num_epochs,
    )
    everything = [f"{shard}:{row}" for shard, size in enumerate(shard_sizes) for row in range(size)]
    steps_per_epoch = -(-len(everything) // effective_batch_size)
    assert {len(of_rank) for of_rank in windows} == {num_epochs * steps_per_epoch}
    for epoch in range(num_epochs):
        steps = range(epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch)
        used = [example_id for step in steps for example_id in ids_of_step(windows, step)]
        assert sorted(used) == sorted(everything)
        sizes = [len(ids_of_step(windows, step)) for step in steps]
        assert sizes[:-1] == [effective_batch_size] * (len(sizes) - 1)
        assert {of_rank[step].epoch for of_rank in windows for step in steps} == {epoch}


@pytest.mark.parametrize("split", SPLITS)
@settings(max_examples=20)
@given(shard_sizes=shards, num_ranks=st.integers(1, 4), effective_batch_size=st.integers(1, 20))
def test_the_ranks_agree_on_what_a_window_is(
    split: Split, shard_sizes: list[int], num_ranks: int, effective_batch_size: int
) -> None:
    windows = windows_of_ranks(shard_sizes, num_ranks, effective_batch_size, split=split)
    digests = set()
    for step, same in enumerate(zip(*windows, strict=True)):
        examples = [e for window in same for e in window.examples]
        for rank, window in enumerate(same):
            assert (window.step, window.rank) == (step + 1, rank)
            assert window.num_examples == len(examples)
            assert window.num_items == sum(e.weight for e in examples)
            assert window.num_tokens == sum(e.length for e in examples)
            assert window.dummy.weight > 0
        assert len({window.digest for window in same}) == 1
        digests.add(same[0].digest)
    assert len(digests) == len(windows[0])


@settings(max_examples=20)
@given(shard_sizes=shards, effective_batch_size=st.integers(1, 20), seed=st.integers(0, 5))
def test_windows_are_the_same_on_any_number_of_ranks(
    shard_sizes: list[int], effective_batch_size: int, seed: int
) -> None:
    on_one, on_three = (
        windows_of_ranks(shard_sizes, n, effective_batch_size, seed=seed, num_epochs=2) for n in (1, 3)
    )
    for step in range(len(on_one[0])):
        assert sorted(ids_of_step(on_one, step)) == sorted(ids_of_step(on_three, step))
        assert on_one[0][step].digest == on_three[0][step].digest


def test_with_shards_each_rank_reads_its_own_files_only() -> None:
    windows = windows_of_ranks([10, 10, 10, 10, 3], 2, 8, split="shards")
    read = [{e.id.partition(":")[0] for window in of_rank for e in window.examples} for of_rank in windows]
    assert not read[0] & read[1]
    assert read[0] | read[1] == {"0", "1", "2", "3", "4"}


def test_there_is_one_collective_a_window() -> None:
    def count(ranks: ThreadRanks, split: Split) -> tuple[int, int]:
        num_windows = sum(1 for _ in make_stream(source_of([20, 20]), ranks, 8, split=split, num_epochs=2))
        return num_windows, ranks.num_exchanges

    for num_windows, num_exchanges in on_ranks(2, lambda ranks: count(ranks, "examples")):  # type: ignore[misc]
        assert (num_windows, num_exchanges) == (10, 10 + 1)  # and one at the end of the data
    for num_windows, num_exchanges in on_ranks(2, lambda ranks: count(ranks, "shards")):  # type: ignore[misc]
        assert (num_windows, num_exchanges) == (10, 10 + 2)  # and one at the start of each epoch


def test_epochs_without_a_number_go_on() -> None:
    stream = make_stream(source_of([5]), OneRank(), 5, num_epochs=None)
    windows = list(islice(stream, 7))
    assert [window.epoch for window in windows] == list(range(7))


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("num_ranks", [1, 3])
def test_bad_rows_are_left_out_and_counted_once(split: Split, num_ranks: int) -> None:
    bad = frozenset({"0:0", "0:6", "1:3", "3:0"})

    def work(ranks: ThreadRanks) -> tuple[list[str], Counter[str], int]:
        stream = make_stream(source_of([7, 4, 5, 1], bad), ranks, 4, split=split, on_bad_row="skip")
        ids = [e.id for window in stream for e in window.examples]
        return ids, stream.bad_rows(), stream.counts.num_examples

    outcomes: list[Any] = on_ranks(num_ranks, work)
    used = sorted(i for ids, _, _ in outcomes for i in ids)
    assert used == sorted({f"{s}:{r}" for s, n in enumerate([7, 4, 5, 1]) for r in range(n)} - bad)
    for _, bad_rows, num_examples in outcomes:
        assert bad_rows == {"field 'value': missing": 4}
        assert num_examples == 13


@pytest.mark.parametrize("split", SPLITS)
def test_a_bad_row_stops_all_ranks_with_its_place(split: Split) -> None:
    def work(ranks: ThreadRanks) -> None:
        for _ in make_stream(source_of([9, 9, 9], frozenset({"1:4"})), ranks, 3, split=split):
            pass

    outcomes = on_ranks(3, work)
    own = [str(error) for error in outcomes if isinstance(error, ValueError)]
    assert own
    assert all("file-1, row 5: field 'value': missing" in message for message in own)
    assert all("`on_bad_row skip`" in message for message in own)
    assert all(isinstance(error, ValueError | RankFailed) for error in outcomes)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("sizes", [[0], [0, 0, 0]])
def test_a_dataset_without_examples_is_an_error(split: Split, sizes: list[int]) -> None:
    outcomes = on_ranks(2, lambda ranks: list(make_stream(source_of(sizes), ranks, 3, split=split)))
    assert all("no usable example" in str(error) for error in outcomes)


def test_ranks_that_see_different_data_are_an_error() -> None:
    outcomes = on_ranks(2, lambda r: list(make_stream(source_of([8 + r.index]), r, 4)))
    assert all("the ranks read different data" in str(error) for error in outcomes)


def test_truncation_is_counted_over_all_ranks() -> None:
    def work(ranks: ThreadRanks) -> tuple[int, int]:
        stream = make_stream(source_of([6, 5]), ranks, 4)
        assert len(list(stream)) == 3
        return stream.counts.num_truncated_examples, stream.counts.num_truncated_tokens

    assert on_ranks(3, work) == [(5, 5)] * 3


@pytest.mark.parametrize("split", SPLITS)
def test_a_window_without_weight_is_left_out_and_counted(split: Split) -> None:
    def weightless_at_first(rows: Sequence[tuple[str, str]]) -> list[Example]:
        return [Example(i, 1, float(int(value.partition(":")[2]) >= 4), {}) for i, value in rows]

    def work(ranks: ThreadRanks) -> tuple[list[int], int, int]:
        stream = WindowStream(
            source_of([10]),
            prepare,
            weightless_at_first,
            ranks=ranks,
            effective_batch_size=4,
            seed=0,
            split=split,
            shuffle_block_size=1,
        )
        windows = list(stream)
        return [w.step for w in windows], stream.counts.num_weightless_windows, stream.counts.num_examples

    assert on_ranks(2, work) == [([1, 2], 1, 10)] * 2


def test_stopping_early_ends_the_background_thread() -> None:
    import threading

    before = threading.active_count()
    windows = iter(make_stream(source_of([100]), OneRank(), 2))
    next(windows)
    assert threading.active_count() == before + 1
    del windows
    assert threading.active_count() == before


@pytest.mark.parametrize("split", SPLITS)
@settings(max_examples=30)
@given(
    shard_sizes=shards,
    num_ranks=st.integers(1, 3),
    effective_batch_size=st.integers(1, 12),
    asked=st.tuples(st.integers(0, 2), st.integers(1, 12)),
)
def test_the_ranks_stop_after_the_same_window_when_one_is_asked_to(
    split: Split, shard_sizes: list[int], num_ranks: int, effective_batch_size: int, asked: tuple[int, int]
) -> None:
    """By the n-th time that the windows ask; of `shards` the first time in a pass is for no window."""
    rank, at = asked[0] % num_ranks, asked[1]

    def work(ranks: ThreadRanks) -> tuple[list[Window], int]:
        num_asked = 0

        def stopping() -> bool:
            nonlocal num_asked
            num_asked += 1
            return ranks.index == rank and num_asked >= at

        windows = list(
            make_stream(source_of(shard_sizes), ranks, effective_batch_size, split=split, stopping=stopping)
        )
        return windows, num_asked

    whole = windows_of_ranks(shard_sizes, num_ranks, effective_batch_size, split=split)
    stopped = run_ranks(num_ranks, work)
    num_announced = 1 if split == "shards" else 0
    expected = min(max(1, at - num_announced), len(whole[0]))
    for of_rank, (windows, num_asked) in zip(whole, stopped, strict=True):
        assert [w.digest for w in windows] == [w.digest for w in of_rank[:expected]]
        assert [w.examples for w in windows] == [w.examples for w in of_rank[:expected]]
        assert num_asked <= max(at, 1 + num_announced)


@pytest.mark.parametrize(("flag", "value"), [("effective_batch_size", 0), ("shuffle_block_size", 0)])
def test_sizes_below_one_are_refused(flag: Literal["effective_batch_size"], value: int) -> None:
    with pytest.raises(ValueError, match=f"{flag.replace('_', ' ')} 0: has to be at least 1"):
        WindowStream(
            source_of([1]),
            prepare,
            encode,
            ranks=OneRank(),
            **{"effective_batch_size": 1, "seed": 0, flag: value},  # type: ignore[arg-type]
        )


@pytest.mark.parametrize("split", SPLITS)
@settings(max_examples=60, deadline=None)
@given(
    shard_sizes=shards,
    num_ranks=st.integers(1, 3),
    effective_batch_size=st.integers(1, 20),
    block=st.integers(1, 40),
    num_epochs=st.integers(1, 3),
    num_bad=st.integers(0, 12),
    data=st.data(),
)
def test_a_stream_goes_on_behind_any_window_as_if_it_had_not_stopped(
    split: Split,
    shard_sizes: list[int],
    num_ranks: int,
    effective_batch_size: int,
    block: int,
    num_epochs: int,
    num_bad: int,
    data: st.DataObject,
) -> None:
    """The same examples on the same ranks, the same counts: bad rows too; through JSON, as a checkpoint keeps it."""
    everything = [f"{shard}:{row}" for shard, size in enumerate(shard_sizes) for row in range(size)]
    bad = frozenset(data.draw(st.permutations(everything), label="bad first")[: min(num_bad, len(everything) - 1)])
    how: dict[str, Any] = {
        "split": split,
        "shuffle_block_size": block,
        "num_epochs": num_epochs,
        "on_bad_row": "skip",
    }

    def run(ranks: ThreadRanks, states: list[Any] | None) -> tuple[list[Window], Counter[str], int]:
        stream = make_stream(source_of(shard_sizes, bad), ranks, effective_batch_size, **how)
        if states is not None:
            stream.load_state_dict(json.loads(json.dumps({"ranks": states})))
        return list(stream), stream.bad_rows(), stream.counts.num_examples

    whole = run_ranks(num_ranks, lambda ranks: run(ranks, None))
    num_windows = len(whole[0][0])
    stop = data.draw(st.integers(1, num_windows), label="stop")
    states = [windows[stop - 1].state.as_json() for windows, _, _ in whole]
    rest = run_ranks(num_ranks, lambda ranks: run(ranks, states))
    for (windows, bad_rows, num_examples), (others, other_bad_rows, other_examples) in zip(whole, rest, strict=True):
        for one, other in zip(windows[stop:], others, strict=True):
            assert [e.id for e in one.examples] == [e.id for e in other.examples]
            assert one.digest == other.digest
            assert one.state == other.state
            assert (one.epoch, one.seed, one.num_items) == (other.epoch, other.seed, other.num_items)
        assert bad_rows == other_bad_rows
        assert num_examples == other_examples
    assert whole[0][1].total() == num_epochs * len(bad)
