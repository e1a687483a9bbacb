"""Even ranks: against the best assignment there is, and that examples are moved, never lost or doubled."""

import itertools
import math
from collections.abc import Sequence
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered_rows import make_stream, source_of
from thread_ranks import ThreadRanks, run_ranks

from hf_accum.accumulation.example import Example
from hf_accum.accumulation.load_balancing import assign, balanced
from hf_accum.accumulation.splitting import cut
from hf_accum.accumulation.time_model import SIZES, UNLEARNED, Costs, Observation, Speed, fit_costs, mean_costs
from hf_accum.data.stream import Split

ONLY_TOKENS = Costs(0.0, 1.0, 0.0)


def loads_of(
    lengths: Sequence[Sequence[int]], owners: Sequence[Sequence[int]], speeds: Sequence[float]
) -> list[float]:
    """With `ONLY_TOKENS`."""
    loads = [0.0] * len(speeds)
    for of_rank, owned in zip(lengths, owners, strict=True):
        for length, owner in zip(of_rank, owned, strict=True):
            loads[owner] += length / speeds[owner]
    return loads


lengths_of_ranks = st.lists(st.lists(st.integers(1, 100), max_size=3), min_size=2, max_size=3).filter(
    lambda lengths: any(map(len, lengths))
)


@settings(max_examples=80, deadline=None)
@given(lengths=lengths_of_ranks)
def test_the_slowest_rank_takes_at_most_twice_the_best_there_is(lengths: list[list[int]]) -> None:
    """Graham's bound for greedy assignments in any order; that no rank is over an even share but by one example."""
    owners = assign(lengths, [ONLY_TOKENS] * len(lengths))
    assert [len(owned) for owned in owners] == [len(of_rank) for of_rank in lengths]
    worst = max(loads_of(lengths, owners, [1.0] * len(lengths)))
    everything = [length for of_rank in lengths for length in of_rank]
    best = min(
        max(
            sum(length for length, o in zip(everything, choice, strict=True) if o == rank)
            for rank in range(len(lengths))
        )
        for choice in itertools.product(range(len(lengths)), repeat=len(everything))
    )
    assert worst <= 2 * best
    assert assign(lengths, [ONLY_TOKENS] * len(lengths)) == owners


def test_what_is_even_stays_where_it_is() -> None:
    lengths = [[5, 3, 2], [4, 4, 2], [10]]
    assert assign(lengths, [ONLY_TOKENS] * 3) == [[0, 0, 0], [1, 1, 1], [2]]


def test_a_rank_that_is_twice_as_fast_gets_twice_as_much() -> None:
    lengths = [[10] * 30, [10] * 30]
    owners = assign(lengths, [ONLY_TOKENS, Costs(0.0, 2.0, 0.0)])
    assert sum(owned.count(0) for owned in owners) == 40
    assert owners[0] == [0] * 30  # only what has to move does


@settings(max_examples=80, deadline=None)
@given(lengths=lengths_of_ranks, slowness=st.lists(st.integers(1, 10), min_size=3, max_size=3))
def test_unequal_ranks_are_never_worse_than_the_fastest_alone(lengths: list[list[int]], slowness: list[int]) -> None:
    """Nor an example moved to a rank that takes longer for it than its own would."""
    slow = slowness[: len(lengths)]
    owners = assign(lengths, [Costs(0.0, float(times), 0.0) for times in slow])
    worst = max(loads_of(lengths, owners, [1 / times for times in slow]))
    assert worst <= min(slow) * sum(length for of_rank in lengths for length in of_rank)


def test_where_only_few_fit_at_once_an_example_costs_more() -> None:
    """A micro-batch of any size takes 10 s; of 8 tokens 10 fit on the first rank, and 2 on the other."""
    costs = Costs(10.0, 0.0, 0.0)
    lengths = [[8] * 60, [8] * 60]
    owners = assign(lengths, [costs] * 2, [(10,) * len(SIZES), (2,) * len(SIZES)])
    assert [sum(owned.count(rank) for owned in owners) for rank in (0, 1)] == [100, 20]
    # Of long ones one fits on either: they are shared evenly.
    lengths = [[100] * 20, [100] * 20]
    few = tuple(10 if size < 100 else 1 for size in SIZES)
    assert assign(lengths, [costs] * 2, [few, (1,) * len(SIZES)]) == [[0] * 20, [1] * 20]
    beyond = [[100_000] * 2, []]
    assert assign(beyond, [costs] * 2, [few, few]) == [[0, 1], []]


def test_ranks_that_fit_the_same_by_length_end_together_where_two_fit_at_once() -> None:
    lengths = [
        list(np.random.default_rng(rank).lognormal(4.3, 0.6, 16).astype(int).clip(8, 512)) for rank in range(8)
    ]
    costs = Costs(0.05, 4e-4, 8e-7)
    most = tuple(2 if size > 64 else 64 for size in SIZES)
    owners = assign(lengths, [costs] * 8, [most] * 8)
    of_rank: list[list[Example]] = [[] for _ in range(8)]
    for home, owned in enumerate(owners):
        for index, owner in enumerate(owned):
            of_rank[owner].append(Example(f"{home}:{index}", int(lengths[home][index]), 1.0, {}))

    def seconds(examples: list[Example]) -> float:
        pieces = cut(examples, lambda length: 2 if length > 64 else 64, costs)
        return sum(float(costs.seconds(len(p), max(e.length for e in p))) for p in pieces)

    taken = [seconds(examples) for examples in of_rank]
    assert max(taken) <= 1.1 * sum(taken) / 8


def test_a_slow_rank_gets_nothing_that_would_keep_the_others_waiting() -> None:
    slow, fast = Costs(0.0, 10.0, 0.0), Costs(0.0, 1.0, 0.0)
    assert assign([[], [100]], [slow, fast]) == [[], [1]]
    assert assign([[100], [100]], [slow, fast]) == [[1], [1]]


def test_equal_devices_that_measured_unequal_times_are_taken_for_equal() -> None:
    """As `balanced` does, from one noisy probe each."""
    draw = np.random.default_rng(0)
    truth = Costs(0.02, 7e-4, 1e-6)
    lengths = [np.clip(draw.lognormal(4.5, 0.75, 16).astype(int), 10, 512).tolist() for _ in range(8)]
    fitted = [
        fit_costs([Observation(8, 512, float(truth.seconds(8, 512) * math.exp(0.2 * draw.normal())))])
        for _ in range(8)
    ]

    def work(ranks: ThreadRanks) -> float:
        mine = [Example(f"{ranks.index}:{i}", length, 1.0, {}) for i, length in enumerate(lengths[ranks.index])]
        share = balanced(mine, [16] * 8, Speed("gpu", fitted[ranks.index]), ranks)
        return sum(float(truth.seconds(len(piece), piece[0].length)) for piece in cut(share, 64, truth))

    seconds = run_ranks(8, work)
    assert max(seconds) / (sum(seconds) / 8) <= 1.05


def test_the_mean_of_costs_predicts_the_mean() -> None:
    one, other = Costs(1.0, 2.0, 3.0, (1.0,) * 7), Costs(3.0, 0.0, 1.0)
    mean = mean_costs([one, other])
    for size in [(1, 10), (8, 512)]:
        assert mean.seconds(*size) == pytest.approx((one.seconds(*size) + other.seconds(*size)) / 2)


def cut_seconds(lengths: Sequence[int], most: int, costs: Costs) -> float:
    """By the cut that a rank really makes."""
    examples = [Example(str(index), length, 1.0, {}) for index, length in enumerate(lengths)]
    return sum(float(costs.seconds(len(piece), piece[0].length)) for piece in cut(examples, most, costs))


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 600), max_size=8), min_size=2, max_size=4).filter(
        lambda lengths: any(map(len, lengths))
    ),
    slowness=st.lists(st.sampled_from([1.0, 2.5]), min_size=4, max_size=4),
    most=st.integers(1, 5),
)
def test_trades_only_help(lengths: list[list[int]], slowness: list[float], most: int) -> None:
    """By the cuts that the ranks make, never slower than what the shares alone assign."""
    costs = [Costs(0.05 * slow, 7e-4 * slow, 1e-6 * slow) for slow in slowness[: len(lengths)]]
    fits = [(most,) * len(SIZES)] * len(lengths)

    def slowest() -> float:
        owners = assign(lengths, costs, fits)
        held: list[list[int]] = [[] for _ in lengths]
        for of_rank, owned in zip(lengths, owners, strict=True):
            for length, owner in zip(of_rank, owned, strict=True):
                held[owner].append(length)
        return max(cut_seconds(its, most, cost) for its, cost in zip(held, costs, strict=True))

    with patch("hf_accum.accumulation.load_balancing._FEW_EXAMPLES", 0):
        by_shares = slowest()
    assert slowest() <= by_shares * (1 + 1e-9)


@pytest.mark.parametrize("per_rank", [8, 16, 32])
@pytest.mark.parametrize("num_ranks", [2, 8, 64, 512])
def test_real_lengths_come_out_even(num_ranks: int, per_rank: int) -> None:
    """Lengths as the synopses have them, each rank's share cut for real."""
    draw = np.random.default_rng(num_ranks)
    lengths = [np.clip(draw.lognormal(4.5, 0.75, per_rank).astype(int), 10, 512).tolist() for _ in range(num_ranks)]
    costs = Costs(0.05, 7e-4, 1e-6)
    owners = assign(lengths, [costs] * num_ranks)
    assert [len(owned) for owned in owners] == [per_rank] * num_ranks
    shares: list[list[Example]] = [[] for _ in range(num_ranks)]
    before: list[list[Example]] = [[] for _ in range(num_ranks)]
    for rank, (of_rank, owned) in enumerate(zip(lengths, owners, strict=True)):
        for index, (length, owner) in enumerate(zip(of_rank, owned, strict=True)):
            example = Example(f"{rank}:{index}", length, 1.0, {})
            shares[owner].append(example)
            before[rank].append(example)

    def slowest(of_ranks: list[list[Example]]) -> float:
        seconds = [
            sum(float(costs.seconds(len(piece), piece[0].length)) for piece in cut(share, 64, costs))
            for share in of_ranks
        ]
        return max(seconds) / (sum(seconds) / len(seconds))

    assert slowest(shares) <= 1.05
    assert num_ranks == 2 or slowest(before) > 1.08


@pytest.mark.parametrize("split", ["examples", "shards"])
@settings(max_examples=25, deadline=None)
@given(
    shard_sizes=st.lists(st.integers(0, 23), min_size=1, max_size=5).filter(any),
    num_ranks=st.integers(2, 4),
    effective_batch_size=st.integers(1, 20),
)
def test_windows_hold_the_same_examples_as_without(
    split: Split, shard_sizes: list[int], num_ranks: int, effective_batch_size: int
) -> None:
    def work(ranks: ThreadRanks) -> tuple[list[list[Example]], ...]:
        windows = [
            list(make_stream(source_of(shard_sizes), ranks, effective_batch_size, split=split, balance=balance))
            for balance in (None, lambda step: Speed("", UNLEARNED))
        ]
        for plain, even in zip(*windows, strict=True):
            assert (plain.step, plain.digest, plain.num_items) == (even.step, even.digest, even.num_items)
            assert (plain.num_examples, plain.num_tokens) == (even.num_examples, even.num_tokens)
        return tuple([list(window.examples) for window in of_how] for of_how in windows)

    outcomes = run_ranks(num_ranks, work)
    for step in range(len(outcomes[0][0])):
        before, after = (sorted(e.id for of_rank in outcomes for e in of_rank[how][step]) for how in (0, 1))
        assert before == after


def test_only_what_has_to_move_is_sent() -> None:
    """Rank 0 has long texts, rank 1 short ones."""

    def work(ranks: ThreadRanks) -> list[int]:
        # The n-th row is n tokens long: the second shard has 20 short ones, the first 20 too, and 20 long ones.
        stream = make_stream(
            source_of((60, 20)),
            ranks,
            80,
            split="shards",
            shuffle_block_size=1,
            balance=lambda step: Speed("", ONLY_TOKENS),
        )
        (window,) = stream
        assert len(ranks.received) == (ranks.index == 1)
        return [e.length for e in window.examples]

    first, second = run_ranks(2, work)
    assert sum(first) == pytest.approx(sum(second), rel=0.02)
    assert len(first) + len(second) == 80
