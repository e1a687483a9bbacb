"""Mixed datasets as windows: exact shares, each dataset whole before a row comes again, however it is run."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered_rows import prepare, source_of
from thread_ranks import ThreadRanks, run_ranks

from hf_accum.accumulation.example import Example
from hf_accum.accumulation.window import Window
from hf_accum.data.mixture import Mixture, ranges_of
from hf_accum.data.stream import WindowStream
from hf_accum.data.stream_state import StreamState
from hf_accum.distributed.ranks import OneRank
from hf_accum.errors import UserError
from hf_accum.run.schedule import count_steps


@dataclass(frozen=True)
class Case:
    """Datasets by the sizes of their shards, and how they are mixed."""

    datasets: tuple[tuple[int, ...], ...]
    weights: tuple[int, ...] | None
    until: Any = "all_exhausted"
    batch: int = 4
    block: int = 3
    num_epochs: int | None = 2
    bad: frozenset[str] = frozenset()

    @property
    def shard_sizes(self) -> list[int]:
        return [size for shards in self.datasets for size in shards]

    @property
    def rows(self) -> list[set[str]]:
        """Of each dataset the ids of its usable rows."""
        ranges = ranges_of([len(shards) for shards in self.datasets])
        return [{f"{s}:{r}" for s in shards for r in range(self.shard_sizes[s])} - self.bad for shards in ranges]

    @property
    def mixture(self) -> Mixture:
        names = tuple("ABC"[: len(self.datasets)])
        num_shards = tuple(map(len, self.datasets))
        weights = None if self.weights is None else tuple(map(Fraction, self.weights))
        sizes = tuple(map(len, self.rows))
        return Mixture(names, weights, self.until, num_shards, num_shards, sizes)

    def stream(self, ranks: Any, **how: Any) -> WindowStream[str]:
        return WindowStream(
            source_of(self.shard_sizes, self.bad),
            prepare,
            encode,
            ranks=ranks,
            effective_batch_size=self.batch,
            seed=0,
            num_epochs=self.num_epochs,
            shuffle_block_size=self.block,
            on_bad_row="skip",
            mixture=self.mixture,
            **how,
        )

    def dataset_of(self, example_id: str) -> int:
        return next(one for one, rows in enumerate(self.rows) if example_id.partition("#")[0] in rows)


def encode(rows: Sequence[tuple[str, str]]) -> list[Example]:
    assert all(example_id.partition("#")[0] == value for example_id, value in rows)
    return [Example(example_id, 1, 1.0, {}) for example_id, _ in rows]


def ids(windows: Sequence[Window]) -> list[str]:
    return [example.id for window in windows for example in window.examples]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    number = draw(st.integers(2, 3))
    sizes = st.lists(st.integers(0, 9), min_size=1, max_size=3).filter(any).map(tuple)
    datasets = draw(st.tuples(*[sizes] * number))
    weights = draw(st.none() | st.tuples(*[st.integers(1, 9)] * number))
    case = Case(
        datasets,
        weights,
        draw(st.sampled_from(("all_exhausted", "first_exhausted"))),
        draw(st.integers(1, 9)),
        draw(st.integers(1, 12)),
        draw(st.integers(1, 2)),
    )
    spare = [sorted(rows)[1:] for rows in case.rows]  # each dataset keeps a row
    bad = frozenset(i for rows in spare for i in rows if draw(st.integers(0, 9)) == 0)
    return Case(case.datasets, case.weights, case.until, case.batch, case.block, case.num_epochs, bad)


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_shares_are_exact_and_a_dataset_is_used_up_before_a_row_comes_again(case: Case) -> None:
    windows = list(case.stream(OneRank()))
    mixture, rows = case.mixture, case.rows
    assert mixture.sizes is not None
    weights = case.weights or mixture.sizes
    used: list[list[str]] = [[] for _ in rows]
    ends: list[int] = []  # of passes, by what was used
    for number, example_id in enumerate(ids(windows), 1):
        used[case.dataset_of(example_id)].append(example_id.partition("#")[0])
        for of_one, weight in zip(used, weights, strict=True):
            assert abs(len(of_one) - Fraction(weight * number, sum(weights))) < 1
        through = [len(of_one) // size for of_one, size in zip(used, mixture.sizes, strict=True)]
        if (max if case.until == "first_exhausted" and case.weights else min)(through) > len(ends):
            ends.append(number)
    for of_one, of_dataset in zip(used, rows, strict=True):
        for start in range(0, len(of_one), len(of_dataset)):
            one_pass = of_one[start : start + len(of_dataset)]
            assert len(set(one_pass)) == len(one_pass)
            assert set(one_pass) <= of_dataset
    # The passes are as long as was said, and windows end with them.
    assert case.num_epochs is not None
    sizes = list(mixture.pass_sizes(case.num_epochs))
    assert ends == [sum(sizes[:n]) for n in range(1, case.num_epochs + 1)]
    assert [sum(w.num_examples for w in windows if w.epoch == n) for n in range(case.num_epochs)] == sizes
    assert len(windows) == count_steps(mixture.pass_sizes(case.num_epochs), case.batch, case.num_epochs, None)
    for window in windows:
        assert len({example.id for example in window.examples}) == window.num_examples


@settings(max_examples=40, deadline=None)
@given(case=cases(), num_then=st.integers(1, 3), num_now=st.integers(1, 3), data=st.data())
def test_a_mixture_goes_on_behind_any_window_on_any_number_of_ranks(
    case: Case, num_then: int, num_now: int, data: st.DataObject
) -> None:
    def run(ranks: ThreadRanks, states: list[Any] | None = None) -> tuple[list[Window], Counter[str]]:
        stream = case.stream(ranks)
        if states is not None:
            stream.load_state_dict(json.loads(json.dumps({"ranks": states})))
        return list(stream), stream.bad_rows()

    alone = list(case.stream(OneRank()))
    whole = run_ranks(num_then, run)
    for windows, _ in whole:
        assert [window.digest for window in windows] == [window.digest for window in alone]
    stop = data.draw(st.integers(1, len(alone)), label="stop")
    states = [windows[stop - 1].state.as_json() for windows, _ in whole]
    rest = run_ranks(num_now, lambda ranks: run(ranks, states))
    for windows, bad_rows in rest:
        assert [(w.step, w.epoch, w.digest) for w in windows] == [(w.step, w.epoch, w.digest) for w in alone[stop:]]
        assert [w.state.place for w in windows] == [w.state.place for w in alone[stop:]]
        assert bad_rows == whole[0][1]
    together = [sorted(ids(same)) for same in zip(*(windows for windows, _ in rest), strict=True)]
    assert together == [sorted(ids([window])) for window in alone[stop:]]


def test_the_order_is_each_datasets_own_and_another_in_its_next_pass() -> None:
    case = Case(((20,), (20,)), (1, 1), batch=40, block=20)
    first, second = (ids([window]) for window in case.stream(OneRank()))
    of_first, of_second, again = (
        [i.partition(":")[2] for i in some if i.startswith(shard)]
        for some, shard in ((first, "0"), (first, "1"), (second, "0"))
    )
    assert sorted(of_first) == sorted(of_second) == sorted(again)
    assert len({tuple(of_first), tuple(of_second), tuple(again)}) == 3


def test_what_is_random_in_a_row_is_drawn_anew_each_time_that_it_comes() -> None:
    drawn: list[tuple[str, int]] = []

    def draw(example: Example, epoch: int) -> Example:
        drawn.append((example.id.partition("#")[0], epoch))
        return example

    list(Case(((8,), (2,)), (1, 1), num_epochs=1).stream(OneRank(), draw=draw))
    assert len(drawn) == len(set(drawn)) == 15  # the last of the first dataset ends the pass
    assert max(epoch for name, epoch in drawn if name.startswith("1")) == 3  # its fourth time


def test_of_unknown_size_weights_hold_and_without_them_the_files_are_one_dataset() -> None:
    def first(mixture: Mixture, number: int) -> list[str]:
        stream = WindowStream(
            source_of([5, 3]), prepare, encode, ranks=OneRank(), effective_batch_size=4, seed=0, num_epochs=None,
            shuffle_block_size=1, mixture=mixture,
        )  # fmt: skip
        return ids(list(islice(stream, number)))

    weighted = Mixture(("A", "B"), (Fraction(3), Fraction(1)), "all_exhausted", (1, 1), (1, 1))
    assert Counter(i[0] for i in first(weighted, 10)) == {"0": 30, "1": 10}
    unweighted = Mixture(("A", "B"), None, "all_exhausted", (1, 1), (1, 1))
    assert first(unweighted, 2) == ["0:0", "0:1", "0:2", "0:3", "0:4", "1:0", "1:1", "1:2"]


def test_a_dataset_without_a_usable_row_is_named() -> None:
    mixture = Mixture(("A", "B"), (Fraction(1), Fraction(1)), "all_exhausted", (1, 1), (1, 1))
    stream = WindowStream(
        source_of([5, 0]), prepare, encode, ranks=OneRank(), effective_batch_size=4, seed=0, mixture=mixture
    )
    with pytest.raises(UserError, match="dataset 'B' has no usable example to train on"):
        list(stream)


def test_own_shards_do_not_go_with_weights() -> None:
    case = Case(((5, 4), (3,)), (1, 1))
    with pytest.raises(UserError, match="`stream_split` shards: has to be examples where datasets have weights"):
        case.stream(OneRank(), split="shards")
    by_size = Case(case.datasets, None, num_epochs=1).stream(OneRank(), split="shards")
    assert sorted(ids(list(by_size))) == sorted(set().union(*case.rows))


def test_a_place_in_another_number_of_datasets_is_refused() -> None:
    (state, *_) = [window.state for window in Case(((5,), (3,)), (1, 1)).stream(OneRank())]
    stream = Case(((5,), (3,), (2,)), (1, 1, 1)).stream(OneRank())
    stream.load_state_dict({"ranks": [StreamState.from_json(state.as_json()).as_json()]})
    with pytest.raises(UserError, match="a place in 2 datasets, and now has 3"):
        list(stream)


def test_a_mixture_in_a_new_order_starts_its_pass_anew() -> None:
    case = Case(((6,), (4,)), (2, 1), num_epochs=3)
    windows = list(case.stream(OneRank()))
    first_of_last = next(w for w in windows if w.epoch == 2)
    other = case.stream(OneRank())
    other.load_state_dict({"ranks": [first_of_last.state.as_json()]}, new_order=True)
    sizes = list(case.mixture.pass_sizes(3))
    assert sum(window.num_examples for window in other) == sizes[0]


@pytest.mark.parametrize("split", ["examples", "shards"])
def test_some_shards_are_read_with_the_ids_that_they_have_among_all(split: Any) -> None:
    def work(ranks: ThreadRanks) -> tuple[list[str], bool, str]:
        stream = WindowStream(
            source_of([2, 3, 0, 2]), prepare, encode, ranks=ranks, effective_batch_size=4, seed=0, split=split,
            shards=range(1, 3),
        )  # fmt: skip
        return ids(list(stream)), stream.has_examples(), stream.first_example().id

    used, *_ = zip(*run_ranks(2, work), strict=True)
    assert sorted(i for of_rank in used for i in of_rank) == ["1:0", "1:1", "1:2"]
    assert run_ranks(2, work)[0][1:] == (True, "1:0")
    nothing = WindowStream(
        source_of([2, 0]), prepare, encode, ranks=OneRank(), effective_batch_size=4, seed=0, shards=range(1, 2)
    )
    assert not nothing.has_examples()
