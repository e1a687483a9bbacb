"""What a micro-batch costs: learned from its own times, whatever they are, and only when that is promised."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_accum.accumulation.capacity import Capacity, WorkingCapacity
from hf_accum.accumulation.example import Example
from hf_accum.accumulation.splitting import Cutter, cut
from hf_accum.accumulation.time_model import KNOTS, UNLEARNED, Costs, Observation, WorkingCosts, fit_costs

SIZES = [(n, length) for n in (1, 2, 5, 12, 30) for length in (10, 40, 100, 300, 512)]


def observe(costs: Costs, sizes: list[tuple[int, int]], noise: float = 0.0, seed: int = 0) -> list[Observation]:
    random = np.random.default_rng(seed)
    return [Observation(n, L, float(costs.seconds(n, L)) * math.exp(noise * random.normal())) for n, L in sizes]


@dataclass
class Time:
    """A time that is known once `done` is set."""

    seconds: float
    done: bool = True

    def read(self) -> float | None:
        return self.seconds if self.done else None


def test_seconds_are_the_formula_in_the_module() -> None:
    costs = Costs(0.5, 0.25, 0.125, tuple(range(1, len(KNOTS) + 1)))
    for n, length in [(1, 1), (3, 100), (7, 512), (90, 300)]:
        tokens = n * length
        beyond = sum((k + 1) * max(0, tokens - knot) for k, knot in enumerate(KNOTS))
        assert costs.seconds(n, length) == pytest.approx(0.5 + 0.25 * tokens + 0.125 * n * length**2 + beyond)
    assert costs.seconds(np.array([1, 2]), 5).shape == (2,)


costs_of_devices = st.builds(
    Costs,
    micro_batch=st.floats(1e-3, 1e-1),
    token=st.floats(1e-6, 1e-3),
    square=st.floats(0, 1e-6),
)


@settings(max_examples=40, deadline=None)
@given(costs=costs_of_devices, seed=st.integers(0, 9))
def test_costs_are_found_again_from_noisy_times(costs: Costs, seed: int) -> None:
    found = fit_costs(observe(costs, SIZES * 4, noise=0.05, seed=seed))
    for n, length in [(1, 512), (4, 64), (8, 128), (30, 10), (20, 400)]:
        assert float(found.seconds(n, length) / costs.seconds(n, length)) == pytest.approx(1, abs=0.12)


def test_a_device_that_loses_on_large_micro_batches_is_seen() -> None:
    """As a CPU beyond its caches: twice the time for each token over 4,096."""
    costs = Costs(
        0.01, 1e-3, 0.0, (0.0,) * KNOTS.index(4096) + (1e-3,) + (0.0,) * (len(KNOTS) - 1 - KNOTS.index(4096))
    )
    found = fit_costs(observe(costs, SIZES))
    assert float(found.seconds(30, 512) / found.seconds(8, 512)) == pytest.approx(
        float(costs.seconds(30, 512) / costs.seconds(8, 512)), rel=0.05
    )


def test_a_few_times_that_are_far_off_count_little() -> None:
    """The first micro-batch of a run, or one while the machine did something else."""
    costs = Costs(0.02, 1e-3, 1e-6)
    observations = observe(costs, SIZES)
    for index in (0, 7, 19):
        observations[index] = replace(observations[index], seconds=20 * observations[index].seconds)
    found = fit_costs(observations)
    assert float(found.seconds(8, 100) / costs.seconds(8, 100)) == pytest.approx(1, abs=0.1)


def test_times_that_no_device_has_are_left_out() -> None:
    costs = Costs(0.02, 1e-3, 1e-6)
    observations = observe(costs, SIZES)
    for index, seconds in [(0, 0.0), (4, math.inf), (9, 1e-320)]:
        observations[index] = replace(observations[index], seconds=seconds)
    observations[12] = replace(observations[12], seconds=observations[12].seconds / 1_000)
    found = fit_costs(observations)
    assert float(found.seconds(8, 100) / costs.seconds(8, 100)) == pytest.approx(1, abs=0.1)
    assert fit_costs([Observation(1, 8, math.inf), Observation(1, 8, 0.0)]) == UNLEARNED


@pytest.mark.parametrize(
    "truth",
    [
        pytest.param(Costs(0.025, 1e-6, 1e-10), id="all launches"),
        pytest.param(Costs(0.03, 1e-4, 0.0), id="large GPU"),
        pytest.param(Costs(0.005, 2e-5, 1e-8), id="small GPU"),
        pytest.param(Costs(0.01, 4e-4, 3e-7, (0.0, 0.0, 2e-4, 1e-4, 0.0, 0.0, 0.0)), id="CPU"),
    ],
)
@pytest.mark.parametrize("most", [4, 16, 64])
def test_a_few_windows_are_enough_to_cut_nearly_as_fast_as_can_be(truth: Costs, most: int) -> None:
    """On devices of which the unlearned costs are far off; from the run's own micro-batches, 10 % of noise."""
    random = np.random.default_rng(most)
    working = WorkingCosts()
    cutter = Cutter(WorkingCapacity(Capacity(most)), working)

    def window() -> list[Example]:
        lengths = np.clip(random.lognormal(4.5, 0.75, 64).astype(int), 10, 512)
        return [Example(str(index), int(length), 1.0, {}) for index, length in enumerate(lengths)]

    def seconds_of(pieces: list[tuple[Example, ...]]) -> float:
        return sum(float(truth.seconds(len(piece), piece[0].length)) for piece in pieces)

    for _ in range(8):
        for piece in cutter.cut(window()):
            seconds = float(truth.seconds(len(piece), piece[0].length)) * math.exp(0.1 * random.normal())
            working.observe(len(piece), piece[0].length, Time(seconds))
        cutter.window_done()
    windows = [window() for _ in range(8)]
    taken = sum(seconds_of(cutter.cut(examples)) for examples in windows)
    assert taken <= 1.25 * sum(seconds_of(cut(examples, most, truth)) for examples in windows)


def test_what_was_not_observed_keeps_the_proportions_of_the_unlearned() -> None:
    assert fit_costs([]) == UNLEARNED
    (seen,) = observe(replace(UNLEARNED, token=1e-3, micro_batch=64e-3, square=1e-6), [(4, 128)])
    found = fit_costs([seen])
    for n, length in [(1, 16), (16, 512)]:
        expected = seen.seconds * float(UNLEARNED.seconds(n, length) / UNLEARNED.seconds(4, 128))
        assert float(found.seconds(n, length)) == pytest.approx(expected, rel=0.05)


def test_no_coefficient_is_negative_and_json_gives_the_same() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        observations = [Observation(n, length, float(random.uniform(0.001, 1))) for n, length in SIZES]
        costs = fit_costs(observations)
        assert min(costs.micro_batch, costs.token, costs.square, *costs.beyond) >= 0
        assert Costs.from_json(costs.as_json()) == costs
        assert Costs.from_numbers(costs.as_numbers()) == costs


@pytest.mark.parametrize(
    "change",
    [
        {"token": -1.0},
        {"square": math.nan},
        {"knots": [1, 2]},
        {"beyond": [0.0]},
        {"token": 0.0, "micro_batch": 0.0, "square": 0.0},
    ],
)
def test_what_is_no_costs_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"knots|no costs"):
        Costs.from_json(UNLEARNED.as_json() | change)


def test_they_change_after_windows_1_2_4_to_64_and_then_no_more() -> None:
    working = WorkingCosts()
    changed = []
    before = working.version
    for window in range(1, 200):
        working.observe(4, 100, Time(0.1 * window))
        working.window_done()
        if working.version != before:
            changed.append(window)
            before = working.version
    assert changed == [1, 2, 4, 8, 16, 32, 64]
    assert working.is_settled


def test_what_was_settled_stays() -> None:
    working = WorkingCosts(Costs(1.0, 2.0, 3.0), is_settled=True)
    working.observe(4, 100, Time(5.0))
    working.window_done()
    assert (working.costs, working.version) == (Costs(1.0, 2.0, 3.0), 0)


def test_a_time_that_is_not_known_yet_is_waited_for_with_those_after_it() -> None:
    working = WorkingCosts()
    late = Time(0.3, done=False)
    working.observe(4, 100, late)
    working.observe(8, 100, Time(0.6))
    working.window_done()
    assert working.costs == UNLEARNED
    late.done = True
    working.window_done()
    assert float(working.costs.seconds(4, 100)) == pytest.approx(0.3, rel=0.1)


def test_what_is_decided_ahead_takes_the_first_costs_or_the_settled_ones() -> None:
    working = WorkingCosts()
    for window in range(1, 129):
        working.observe(4, 100, Time(0.1))
        working.window_done()
        assert working.at_step(window) == UNLEARNED
    assert working.at_step(129) == working.costs != UNLEARNED


@pytest.mark.parametrize("leaves_out_first", [False, True])
def test_a_pass_without_gradients_begins_as_the_training_is_and_learns_by_itself(leaves_out_first: bool) -> None:
    training = WorkingCosts(leaves_out_first=leaves_out_first)
    assert training.for_forwards().explores  # nothing is known
    for _ in range(3):
        training.observe(4, 100, Time(0.3))
        training.window_done()
    before = training.state_dict()
    own = training.for_forwards()
    assert own.costs == training.costs
    assert not own.explores
    for _ in range(8):
        own.observe(4, 100, Time(0.1))
        own.window_done()
    assert float(own.costs.seconds(4, 100)) == pytest.approx(0.1, rel=0.1)
    assert training.state_dict() == before


def test_costs_that_never_learn_do_not_in_a_pass_without_gradients_either() -> None:
    never = WorkingCosts(is_settled=True).for_forwards()
    never.observe(4, 100, Time(5.0))
    never.window_done()
    assert (never.costs, never.version, never.explores) == (UNLEARNED, 0, False)


def test_on_an_accelerator_the_first_time_of_a_shape_is_no_cost() -> None:
    """Kernels are chosen and loaded then: here it takes a hundred times as long."""
    costs, plain = WorkingCosts(leaves_out_first=True), WorkingCosts()
    seen: set[tuple[int, int]] = set()
    for window in range(8):
        assert costs.explores == (window < 2)
        for number, length in ((1, 64), (2, 64), (4, 64), (8, 64), (4, 16), (8, 16)):
            seconds = 1e-3 * number * length / 64 * (1 if (number, length) in seen else 100)
            seen.add((number, length))
            costs.observe(number, length, Time(seconds))
            plain.observe(number, length, Time(seconds))
        costs.window_done()
        plain.window_done()
    kept = [observation.seconds for observation in costs._first]
    assert max(kept) <= 8e-3
    assert len(kept) == 6 * 7
