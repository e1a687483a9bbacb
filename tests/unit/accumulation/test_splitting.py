"""The fastest cut: against all cuts there are; and that a cut is a cut, whatever the lengths, costs and limits."""

import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_accum.accumulation.capacity import Capacity, Peak, WorkingCapacity
from hf_accum.accumulation.example import Example
from hf_accum.accumulation.splitting import Cutter, cut
from hf_accum.accumulation.time_model import KNOTS, UNLEARNED, Costs, WorkingCosts

costs_of_devices = st.builds(
    Costs,
    micro_batch=st.floats(0, 100),
    token=st.floats(0.01, 1),
    square=st.floats(0, 0.1),
    beyond=st.lists(st.floats(0, 1), min_size=len(KNOTS), max_size=len(KNOTS)).map(tuple),
)


def examples_of(lengths: Sequence[int]) -> list[Example]:
    return [Example(f"{i}", length, 1.0, {}) for i, length in enumerate(lengths)]


def seconds_of(pieces: Sequence[Sequence[Example]], costs: Costs, multiple_of: int = 1) -> float:
    total = 0.0
    for piece in pieces:
        longest = max(e.length for e in piece)
        total += float(costs.seconds(len(piece), -(-longest // multiple_of) * multiple_of))
    return total


def every_partition(items: list[Example]) -> list[list[list[Example]]]:
    """Of a set, contiguous or not."""
    if not items:
        return [[]]
    first, rest = items[0], items[1:]
    found = []
    for partition in every_partition(rest):
        found.append([[first], *partition])
        found += [[*partition[:i], [first, *partition[i]], *partition[i + 1 :]] for i in range(len(partition))]
    return found


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 600), min_size=1, max_size=6),
    costs=costs_of_devices,
    tokens=st.integers(600, 3000),
    multiple_of=st.sampled_from([1, 8]),
)
def test_no_other_cut_is_faster(lengths: list[int], costs: Costs, tokens: int, multiple_of: int) -> None:
    """Of all partitions into micro-batches that fit, contiguous by length or not."""
    examples = examples_of(lengths)

    def padded(length: int) -> int:
        return -(-length // multiple_of) * multiple_of

    def most(length: int) -> int:
        return max(1, tokens // length)

    found = seconds_of(cut(examples, most, costs, padded), costs, multiple_of)
    allowed = [
        partition
        for partition in every_partition(examples)
        if all(len(piece) <= most(padded(max(e.length for e in piece))) for piece in partition)
    ]
    best = min(seconds_of(partition, costs, multiple_of) for partition in allowed)
    assert found == pytest.approx(best, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 512), max_size=70),
    costs=costs_of_devices,
    size=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_every_example_is_there_once_and_the_cheapest_piece_last(
    lengths: list[int], costs: Costs, size: int, seed: int
) -> None:
    examples = examples_of(lengths)
    pieces = cut(examples, size, costs)
    assert sorted(e.id for piece in pieces for e in piece) == sorted(e.id for e in examples)
    assert all(1 <= len(piece) <= size for piece in pieces)
    seconds = [float(costs.seconds(len(piece), piece[0].length)) for piece in pieces]
    assert seconds == sorted(seconds, reverse=True)
    assert all(piece[0].length == max(e.length for e in piece) for piece in pieces)
    assert cut(random.Random(seed).sample(examples, len(examples)), size, costs) == pieces


def test_equal_lengths_are_cut_into_as_few_as_fit_where_a_micro_batch_has_a_price() -> None:
    for number in range(1, 40):
        assert len(cut(examples_of([64] * number), 8, Costs(1.0, 1e-3, 0.0))) == -(-number // 8)


def test_a_device_slow_on_large_micro_batches_gets_smaller_ones_than_fit() -> None:
    slow = Costs(0.01, 1e-3, 0.0, tuple(1e-2 if knot == 512 else 0.0 for knot in KNOTS))
    pieces = cut(examples_of([128] * 64), 64, slow)
    assert {len(piece) * 128 for piece in pieces} == {512}
    assert {len(piece) for piece in cut(examples_of([128] * 64), 64, UNLEARNED)} == {64}


def test_uneven_lengths_are_padded_little() -> None:
    draw = random.Random(0)
    lengths = [min(512, max(10, round(draw.lognormvariate(4.5, 0.7)))) for _ in range(64)]
    pieces = cut(examples_of(lengths), 64, UNLEARNED)
    padded = sum(len(piece) * piece[0].length for piece in pieces)
    assert padded <= 1.1 * sum(lengths)
    assert sum(len(p) * p[0].length for p in cut(examples_of(lengths), 64)) > 2 * sum(lengths)


def test_lengths_are_padded_to_a_multiple_but_not_beyond_the_longest() -> None:
    cutter = Cutter(WorkingCapacity(Capacity(4)), None, multiple_of=8, max_length=30)
    assert [cutter.padded(length) for length in (1, 8, 9, 24, 25, 30)] == [8, 8, 16, 24, 30, 30]
    assert Cutter(WorkingCapacity(Capacity(4)), None, multiple_of=8, max_length=30).padded(40) == 40
    assert [Cutter(WorkingCapacity(Capacity(4))).padded(length) for length in (1, 9, 513)] == [1, 9, 513]


def test_a_pass_without_gradients_has_the_tokens_of_the_longest_and_changes_nothing_of_the_training() -> None:
    peak = Peak(((0.0, 0.0, 0.0, 1.0),), unit_length=1)  # a byte for each token of each example
    training = Cutter(WorkingCapacity(Capacity(32, peak, 1000.0)), WorkingCosts(), max_length=100)
    assert [training.capacity.num_examples(length) for length in (1, 10, 50, 100)] == [32, 32, 20, 10]
    own = training.for_forwards()
    assert [own.capacity.num_examples(length) for length in (1, 10, 50, 100)] == [1000, 100, 20, 10]
    version = training.version
    own.capacity.out_of_memory(10, 100)
    own.window_done()
    assert own.capacity.num_examples(100) == 5
    assert training.version == version
    assert training.capacity.num_examples(100) == 10


def test_a_number_that_was_given_is_the_most_without_gradients_too() -> None:
    given = Cutter(WorkingCapacity(Capacity(4)), max_length=100).for_forwards()
    assert [given.capacity.num_examples(length) for length in (1, 10, 100)] == [4, 4, 4]


def test_the_version_changes_with_whatever_changes_a_cut() -> None:
    cutter = Cutter(WorkingCapacity(Capacity(8)), WorkingCosts())
    versions = [cutter.version]
    cutter.capacity.out_of_memory(8, 100)
    versions.append(cutter.version)
    for _ in itertools.repeat(None, 64):
        cutter.window_done()
        versions.append(cutter.version)
    # Costs after 1, 2, 4, ... 64 windows, though there was nothing to learn from; the capacity twice.
    assert len(set(versions)) == 1 + 7 + 1
    assert versions[-1] == (2, 7)


@given(lengths=st.lists(st.integers(1, 50), max_size=60), most=st.integers(1, 20))
def test_exploring_tries_all_sizes_and_loses_nobody(lengths: list[int], most: int) -> None:
    examples = examples_of(lengths)
    cutter = Cutter(WorkingCapacity(Capacity(most)), WorkingCosts())
    pieces = cutter.cut(examples)
    assert sorted(e.id for piece in pieces for e in piece) == sorted(e.id for e in examples)
    flat = [e.length for piece in pieces for e in piece]
    assert flat == sorted(lengths, reverse=True)
    cycle = [size for size in (1, 2, 4, 8, 16) if size < most] + [most]
    sizes = [len(piece) for piece in pieces]
    assert sizes[:-1] == list(itertools.islice(itertools.cycle(cycle), len(sizes)))[:-1]
    cutter.window_done()
    assert cutter.cut(examples) == cut(examples, most, UNLEARNED)


@dataclass
class _Time:
    seconds: float

    def read(self) -> float:
        return self.seconds


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=60),
    most=st.integers(1, 20),
    failures=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 300)), max_size=4),
    num_windows=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_a_cutter_that_was_saved_goes_on_cutting_the_same(
    lengths: list[int], most: int, failures: list[tuple[int, int]], num_windows: int, seed: int
) -> None:
    """Also what it learns from then on."""
    draw = random.Random(seed)
    examples = examples_of(lengths)
    cutter = Cutter(WorkingCapacity(Capacity(most)), WorkingCosts())
    other = Cutter(WorkingCapacity(Capacity(1)), WorkingCosts(Costs(1.0, 2.0, 3.0)))

    def window(cutters: Sequence[Cutter]) -> None:
        pieces = cutters[0].cut(examples)
        for piece in pieces:
            time = _Time(draw.uniform(0.5, 2.0) * len(piece) * piece[0].length)
            for one in cutters:
                assert one.costs is not None
                one.costs.observe(len(piece), piece[0].length, time)
        for one in cutters:
            one.window_done()

    for _ in range(num_windows):
        window([cutter])
    for failure in failures:
        cutter.capacity.out_of_memory(*failure)
    other.load_state_dict(json.loads(json.dumps(cutter.state_dict())))
    for _ in range(70):
        assert other.cut(examples) == cutter.cut(examples)
        assert other.speed_at_step(1) == cutter.speed_at_step(1)
        window([cutter, other])
    assert other.state_dict() == cutter.state_dict()


@given(lengths=st.lists(st.integers(1, 512), max_size=60), size=st.integers(1, 70), seed=st.integers(0, 99))
def test_a_cut_keeps_every_example_once_and_the_longest_together(lengths: list[int], size: int, seed: int) -> None:
    examples = examples_of(lengths)
    pieces = cut(examples, size)
    assert sorted(e.id for piece in pieces for e in piece) == sorted(e.id for e in examples)
    assert all(len(piece) == size for piece in pieces[:-1])
    assert len(pieces) == -(-len(examples) // size)
    flat = [e.length for piece in pieces for e in piece]
    assert flat == sorted(lengths, reverse=True)
    shuffled = random.Random(seed).sample(examples, len(examples))
    assert cut(shuffled, size) == pieces


@pytest.mark.parametrize("size", [0, -3])
def test_a_size_below_one_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"micro-batch size {size}"):
        cut(examples_of([1]), size)
