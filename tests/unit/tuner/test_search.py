"""The tuner against brute force, on made-up devices and on real models whose live bytes are counted here anew."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import AdamW
from workload_cases import CPU, TINY, make_workload, of_sizes, peak_of_training

from hf_accum.device.memory import VirtualMemory
from hf_accum.errors import OutOfMemory
from hf_accum.tuner.prediction import Prediction, predict
from hf_accum.tuner.search import NothingFits, tune
from hf_accum.tuner.tuning import Tuning
from hf_accum.tuner.workload import Workload


def check_against_brute_force(work: Workload, budget: int, most: int, lengths: Iterable[int]) -> None:
    """At each length what is returned runs within the budget, and one example more does not."""
    tuning = tune(work, VirtualMemory(budget), CPU, most=most)
    assert len(tuning.probes) <= 3
    for probe in tuning.probes:
        assert probe.measured_bytes is not None
        assert 1.00 <= probe.predicted_bytes / probe.measured_bytes <= 1.05
    assert tuning.prediction is not None
    for length in lengths:
        number = tuning.capacity.num_examples(length)
        used = peak_of_training(work, number, length)
        assert used <= budget
        assert number == most or peak_of_training(work, number + 1, length) > budget
        floor = max(tuning.prediction.fixed.total, tuning.prediction.fixed.optimizer_peak)
        assert 1.00 <= max(floor, tuning.prediction.training.bytes_at(number, length)) / used <= 1.05


@pytest.mark.parametrize(
    "factors",
    [pytest.param((3.1,), id="one budget"), pytest.param((1.0, 1.7, 5.0), id="more", marks=pytest.mark.by_hand)],
)
@pytest.mark.parametrize(
    ("lora", "checkpointing"),
    [
        pytest.param(True, True, id="lora-checkpointed", marks=pytest.mark.slow),
        pytest.param(False, False, id="full-kept"),
        pytest.param(True, False, id="lora-kept", marks=pytest.mark.by_hand),
        pytest.param(False, True, id="full-checkpointed", marks=pytest.mark.by_hand),
    ],
)
@pytest.mark.parametrize("architecture", TINY)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")  # peft, of GPT-2's layers
def test_brute_force_finds_no_other_size(
    architecture: str, lora: bool, checkpointing: bool, factors: Sequence[float]
) -> None:
    work = make_workload(architecture, lora=lora, checkpointing=checkpointing, max_length=256)
    one = peak_of_training(work, 2, 256)
    for factor in factors:
        lengths = (32, 80, 256) if work.lengths.vary else (256,)
        check_against_brute_force(work, round(one * factor), 48, lengths)


@pytest.mark.by_hand
@pytest.mark.parametrize(
    ("lora", "checkpointing", "max_length"),
    [(True, False, 512), (True, True, 256), (False, False, 256), (False, True, 256)],
)
def test_brute_force_finds_no_other_size_for_minilm(lora: bool, checkpointing: bool, max_length: int) -> None:
    work = make_workload("minilm", lora=lora, checkpointing=checkpointing, max_length=max_length)
    one, two = (peak_of_training(work, number, max_length) for number in (1, 2))
    for more in (0.0, 0.9, 1.5, 2.0):
        check_against_brute_force(work, round(one + more * (two - one)), 64, (64, max_length))


# Devices that do not exist


@dataclass
class MadeUpMemory:
    """A device that takes `needed(num_examples, length)` bytes, and counts them as `seen` of it."""

    limit_bytes: int
    needed: Callable[[int, int], float]
    sizes: list[tuple[int, int]]
    strains: float = 1.0  # how far over its limit it runs
    name: str = "made up"
    is_exact: bool = False
    runs: list[tuple[int, int]] = field(default_factory=list)

    def expect(self, num_bytes: int) -> None:
        pass

    def look_again(self) -> None:
        pass

    def used_bytes(self, held: Iterable[Tensor]) -> int:
        return 1000

    def measure(self, work: Callable[[], None], held: Iterable[Tensor]) -> int | None:
        work()
        self.runs.append(self.sizes[-1])
        used = round(self.needed(*self.sizes[-1]))
        return used if used <= self.limit_bytes * self.strains else None


def made_up(limit: int, needed: Callable[[int, int], float], strains: float = 1.0) -> tuple[Workload, MadeUpMemory]:
    """A model of one layer whose bytes are nearly proportional to its tokens, on such a device."""
    model = nn.Linear(8, 8)
    sizes: list[tuple[int, int]] = []

    def loss(model: nn.Module, num_examples: int, length: int, device: torch.device) -> Tensor:
        sizes.append((num_examples, length))
        return model(torch.zeros(num_examples, length, 8, device=device)).tanh().sum()

    work = of_sizes(model, lambda m: AdamW(m.parameters(), fused=True), loss, loss, max_length=32)
    return work, MadeUpMemory(limit, needed, sizes, strains)


@cache
def made_up_prediction() -> Prediction:
    return predict(made_up(0, lambda *_: 0)[0])


def tuned(work: Workload, memory: MadeUpMemory, most: int) -> Tuning:
    """The made-up model, which is the same in all examples, is traced once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_accum.tuner.search.predict", lambda *_, **__: made_up_prediction())
        return tune(work, memory, CPU, most=most)


def true_largest(needed: Callable[[int, int], float], limit: int, most: int) -> int:
    return max((n for n in range(1, most + 1) if needed(n, 32) <= limit), default=0)


@settings(max_examples=60, deadline=None)
@given(
    slope=st.floats(0.9, 1.3),
    offset=st.integers(0, 100_000),
    limit=st.integers(30_000, 2_000_000),
    most=st.integers(1, 300),
)
def test_on_a_device_that_counts_along_a_line_three_probes_are_enough(
    slope: float, offset: int, limit: int, most: int
) -> None:
    peak = made_up_prediction().training

    def needed(num_examples: int, length: int) -> float:
        return offset + slope * peak.bytes_at(num_examples, length)

    work, memory = made_up(limit, needed, strains=1.5)
    true = true_largest(needed, limit, most)
    if true == 0:
        with pytest.raises(NothingFits, match="not even one example of 32 tokens fits"):
            tuned(work, memory, most)
        return
    tuning = tuned(work, memory, most)
    found = tuning.capacity.num_examples(32)
    assert found == true
    assert (found, 32) in memory.runs
    assert len(tuning.probes) <= 3
    for length in range(1, 33):
        assert needed(tuning.capacity.num_examples(length), length) <= limit + 2


@settings(max_examples=60, deadline=None)
@given(
    cliff=st.integers(1, 90),
    height=st.integers(1, 3_000_000),
    limit=st.integers(60_000, 3_000_000),
    most=st.integers(1, 120),
)
def test_what_is_returned_ran_also_where_the_prediction_is_wrong(
    cliff: int, height: int, limit: int, most: int
) -> None:
    """From some size on the device needs much more than its line says."""

    def needed(num_examples: int, length: int) -> float:
        return 20_000 + 700 * num_examples * length + (height if num_examples * length > cliff * 32 else 0)

    work, memory = made_up(limit, needed)
    true = true_largest(needed, limit, most)
    if true == 0:
        with pytest.raises(NothingFits):
            tuned(work, memory, most)
        return
    found = tuned(work, memory, most).capacity.num_examples(32)
    assert found <= true
    assert (found, 32) in memory.runs


def test_what_did_not_fit_the_first_time_is_not_returned_from_a_cache_either() -> None:
    """A device that needs half as much again below the longest length."""

    def needed(num_examples: int, length: int) -> float:
        return 20_000 + 700 * num_examples * length * (1.5 if length < 32 else 1.0)

    limit = 1_000_000
    work, memory = made_up(limit, needed)
    first = tune(work, memory, CPU, most=300)
    assert first.frontier is not None
    assert first.frontier < 0.9
    work, memory = made_up(limit, needed)
    second = tune(work, memory, CPU, most=300, known=first)
    assert second.from_cache
    assert second.largest() == first.largest()
    # What was never verified, as there was room for all, is so once it is needed.
    roomy = tune(*made_up(20_000_000, needed), CPU, most=300)
    assert (roomy.frontier, roomy.capacity.num_examples(32)) == (None, 300)
    work, memory = made_up(limit, needed)
    third = tune(work, memory, CPU, most=300, known=roomy)
    assert third.from_cache
    assert third.frontier is not None
    assert third.frontier < 0.9


class MadeUpTime:
    """A device that takes a tenth of a second for an example, and half a second more at its first use."""

    first = True

    def __init__(self, sizes: list[tuple[int, int]]) -> None:
        self.sizes = sizes

    def stop(self) -> None:
        pass

    def read(self) -> float:
        more, self.first = (0.5 if self.first else 0.0), False
        return more + self.sizes[-1][0] / 10


@pytest.mark.parametrize(
    ("limit", "most", "found", "is_enough"),
    [
        (10**9, 65, 32, True),  # 3.2 s, the power of 2 below 5 s
        (10**9, 64, 64, False),  # not twice as many: up to all of the window
        (10**9, 300, 75, True),  # a quarter of the window
        (20_000 + 700 * 32 * 60, 100, 60, False),  # as much as fits, where that is not all
        (20_000 + 700 * 32 * 90, 65, 65, False),  # memory for less than a window and a half
    ],
)
def test_where_memory_is_plenty_no_more_is_run_than_computes_for_long_enough(
    limit: int, most: int, found: int, is_enough: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def needed(num_examples: int, length: int) -> float:
        return 20_000 + 700 * num_examples * length

    work, memory = made_up(limit, needed)
    timed = MadeUpTime(memory.sizes)
    monkeypatch.setattr("hf_accum.tuner.probes.Stopwatch.on", lambda device: timed)
    tuning = tune(work, memory, CPU, most=most, max_probe_seconds=5.0)
    assert tuning.largest()[32] == max(number for number, _ in memory.runs) == found
    assert tuning.enough == (found if is_enough else None)
    assert len(memory.runs) <= 4
    assert ("and be no faster: `max_probe_seconds null`" in str(tuning)) == is_enough
    # Without a limit it is the largest.
    work, memory = made_up(limit, needed)
    largest = tune(work, memory, CPU, most=most)
    assert (largest.largest()[32], largest.enough) == (min(most, (limit - 20_000) // (700 * 32)), None)
    # A hit costs one run, of the same size; where less fits by now, that counts.
    work, memory = made_up(limit, needed)
    again = tune(work, memory, CPU, most=most, known=tuning, max_probe_seconds=5.0)
    assert (again.largest(), again.enough) == (tuning.largest(), tuning.enough)
    assert memory.runs == [(found, 32)]
    if is_enough:
        work, memory = made_up(20_000 + 700 * 32 * 20, needed)
        less = tune(work, memory, CPU, most=most, known=tuning, max_probe_seconds=5.0)
        assert (less.largest()[32], less.enough) == (20, None)


def test_an_optimizer_s_step_that_does_not_fit_is_said_before_training() -> None:
    """One parameter after the other needs memory beside its state."""
    model = nn.Linear(512, 512)

    def loss(model: nn.Module, num_examples: int, length: int, device: torch.device) -> Tensor:
        return model(torch.zeros(num_examples, 512, device=device)).sum()

    work = of_sizes(model, lambda m: AdamW(m.parameters(), foreach=False), loss, loss, max_length=4)
    floor = predict(work).fixed.floor
    assert floor > predict(work).training.bytes_at(1, 4)
    with pytest.raises(NothingFits, match="not even one example"):
        tune(work, VirtualMemory(floor - 1), CPU, most=8)
    assert tune(work, VirtualMemory(floor), CPU, most=8).capacity.num_examples(4) >= 1


def test_a_device_that_fails_at_one_example_is_not_said_to_have_room() -> None:
    work, memory = made_up(100_000, lambda num_examples, length: 1e9)
    with pytest.raises(
        NothingFits, match=r"it ran out of memory on made up, though it was predicted to need \d+ KiB"
    ):
        tune(work, memory, CPU, most=8)


@pytest.mark.slow
def test_a_model_that_cannot_be_traced_is_tried_out() -> None:
    """Its forward asks for a value: one size, for the longest length, found by real runs alone."""
    model = nn.Linear(8, 8)

    def loss(model: nn.Module, num_examples: int, length: int, device: torch.device) -> Tensor:
        out = model(torch.zeros(num_examples, length, 8, device=device)).tanh().sum()
        assert out.item() < 1e9
        return out

    work = of_sizes(model, lambda m: AdamW(m.parameters(), fused=True), loss, loss, max_length=32)
    one, two = (peak_of_training(work, number, 32) for number in (3, 4))
    for number in (1, 5, 11):
        budget = one + (number - 3) * (two - one)
        tuning = tune(work, VirtualMemory(budget), CPU, most=40)
        assert {tuning.capacity.num_examples(length) for length in (1, 16, 32)} == {number}
        assert (number, 32) in {(p.num_examples, p.length) for p in tuning.probes if p.fits}
        assert "found by trying" in str(tuning)
        again = tune(work, VirtualMemory(budget), CPU, most=40, known=tuning)
        assert (again.from_cache, again.capacity.num_examples(32)) == (True, number)


# What else is promised


def test_nothing_of_the_tuning_is_left() -> None:
    """Weights, buffers, gradients, modes, random generators: bit for bit, dropout and batch statistics or not."""
    import random

    import numpy as np

    first, dropout = nn.Linear(8, 8), nn.Dropout(0.5)
    model = nn.Sequential(first, nn.BatchNorm1d(8), dropout, nn.Linear(8, 1))
    dropout.eval()
    gradients = [torch.randn_like(p) for p in model.parameters()]
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient

    def loss(model: nn.Module, num_examples: int, length: int, device: torch.device) -> Tensor:
        random.random()
        np.random.rand()
        return model(torch.randn(num_examples * length, 8, device=device)).sum()

    optimizer = AdamW(model.parameters(), lr=0.1)
    optimizer.step()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    of_optimizer = {name: value.clone() for name, value in optimizer.state[first.weight].items()}

    def generators() -> tuple[Any, ...]:
        return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()

    before = generators()
    work = of_sizes(model, lambda m: AdamW(m.parameters()), loss, loss, max_length=16)
    tune(work, VirtualMemory(60_000), CPU, most=64)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(value, of_optimizer[name]) for name, value in optimizer.state[first.weight].items())
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert [module.training for module in model] == [True, True, False, True]
    assert generators() == before


def test_a_budget_that_fits_nothing_is_said_with_what_lacks() -> None:
    work = make_workload("llama", lora=False, checkpointing=False)
    needed = peak_of_training(work, 1, 512)
    with pytest.raises(OutOfMemory, match=r"not even one example of 512 tokens fits: it needs .* more than the"):
        tune(work, VirtualMemory(needed - 1), CPU, most=8)
    assert tune(work, VirtualMemory(needed), CPU, most=8).capacity.num_examples(512) == 1


@pytest.mark.by_hand
def test_an_earlier_result_costs_one_probe_and_a_wrong_one_is_found_out() -> None:
    work = make_workload("llama", lora=True, checkpointing=False)
    budget = 3 * peak_of_training(work, 2, 512)
    first = tune(work, VirtualMemory(budget), CPU, most=64)
    second = tune(work, VirtualMemory(budget), CPU, most=64, known=first)
    assert second.from_cache
    assert len(second.probes) == 1
    assert second.largest() == first.largest()
    more = tune(work, VirtualMemory(2 * budget), CPU, most=64, known=first)  # today there is more memory
    assert more.largest() == tune(work, VirtualMemory(2 * budget), CPU, most=64).largest()

    other = make_workload("llama", lora=False, checkpointing=True)
    wrong: Tuning = tune(other, VirtualMemory(budget), CPU, most=64)
    corrected = tune(work, VirtualMemory(budget), CPU, most=64, known=wrong)
    assert not corrected.from_cache
    assert corrected.largest() == first.largest()
