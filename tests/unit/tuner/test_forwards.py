"""The capacity for forwards alone, against forwards whose live bytes are counted here anew."""

from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn
from workload_cases import CPU, TINY, Counter, make_workload

from hf_accum.accumulation.capacity import WorkingCapacity
from hf_accum.accumulation.splitting import Cutter
from hf_accum.device.memory import VirtualMemory
from hf_accum.tuner import probes
from hf_accum.tuner.cache import read, write
from hf_accum.tuner.forwards import tune_forwards
from hf_accum.tuner.search import NothingFits
from hf_accum.tuner.tracing import Tracer
from hf_accum.tuner.workload import Workload


def forwards_of(architecture: str, lora: bool = True, max_length: int = 256) -> Workload:
    return replace(make_workload(architecture, lora=lora, checkpointing=False, max_length=max_length), trains=False)


def peak_of_a_forward(work: Workload, num_examples: int, length: int) -> int:
    with Counter([*work.model.parameters(), *work.model.buffers()]) as counter:
        work.evaluate(num_examples, length, CPU)
    return counter.peak


@pytest.mark.parametrize("architecture", TINY)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")  # peft, of GPT-2's layers
def test_where_memory_is_scarce_brute_force_finds_no_other_size(architecture: str) -> None:
    work = forwards_of(architecture)
    budget = sum(peak_of_a_forward(work, number, 256) for number in (6, 7)) // 2
    tuning = tune_forwards(work, VirtualMemory(budget), CPU, most=48)
    assert tuning.probes
    for length in (32, 80, 256) if work.lengths.vary else (256,):
        number = tuning.capacity.num_examples(length)
        assert peak_of_a_forward(work, number, length) <= budget
        assert number == 48 or peak_of_a_forward(work, number + 1, length) > budget
        assert length != 256 or number == 6


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
def test_more_short_examples_than_a_window_has_go_through_at_once_where_they_fit(architecture: str) -> None:
    work = forwards_of(architecture)
    budget = peak_of_a_forward(work, 8, 256)
    tuning = tune_forwards(work, VirtualMemory(budget), CPU, most=12)
    capacity = Cutter(WorkingCapacity(tuning.capacity), max_length=256).for_forwards().capacity
    for length in (1, 2, 5, 16, 60, 128, 256):
        number = capacity.num_examples(length)
        assert peak_of_a_forward(work, number, length) <= budget
        assert number >= tuning.capacity.num_examples(length)
    assert capacity.num_examples(60) > 12
    assert capacity.num_examples(16) * 16 <= 8 * 256


def test_where_memory_is_ample_nothing_is_probed_and_a_third_of_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    work = forwards_of("llama")
    weights = Counter([*work.model.parameters(), *work.model.buffers()]).now
    needed = peak_of_a_forward(work, 12, 256) - weights
    monkeypatch.setattr(probes.Prober, "run", None)
    memory = VirtualMemory(weights + round(3.2 * needed))
    tuning = tune_forwards(work, memory, CPU, most=12)
    assert [tuning.capacity.num_examples(length) for length in (1, 256)] == [12, 12]
    assert not tuning.probes
    again = tune_forwards(work, memory, CPU, most=12, known=tuning)
    assert again.from_cache
    assert again.capacity == tuning.capacity
    with pytest.raises(TypeError):  # with less it is
        tune_forwards(work, VirtualMemory(weights + round(2.8 * needed)), CPU, most=12)


def test_what_was_found_in_ample_memory_and_in_scarce_is_of_use_for_the_other(tmp_path: Path) -> None:
    work, kept = forwards_of("llama"), tmp_path / "kept.json"
    ample, scarce = VirtualMemory(2**40), VirtualMemory(peak_of_a_forward(work, 6, 256))
    known, numbers = None, []
    for memory in (ample, scarce, ample, scarce):
        tuning = tune_forwards(work, memory, CPU, most=12, known=known)
        assert tuning.from_cache == (known is not None)
        assert len(tuning.probes) <= (1 if known is None or known.frontier is not None else 2)
        numbers.append(tuning.capacity.num_examples(256))
        write(kept, tuning)
        known = read(kept)
    assert numbers == [12, 6, 12, 6]


def test_forwards_fit_where_training_does_not_and_leave_no_gradient() -> None:
    work = forwards_of("llama", lora=False)
    budget = peak_of_a_forward(work, 2, 256)
    assert tune_forwards(work, VirtualMemory(budget), CPU, most=12).capacity.num_examples(256) == 2
    assert all(parameter.grad is None for parameter in work.model.parameters())
    with pytest.raises(NothingFits, match="not even one example of 256 tokens fits"):
        tune_forwards(work, VirtualMemory(peak_of_a_forward(work, 1, 256) - 1), CPU, most=12)


def test_a_deep_model_is_traced_with_few_of_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TINY["llama"], "num_hidden_layers", 9)
    work = forwards_of("llama")
    blocks = next(module for module in work.model.modules() if isinstance(module, nn.ModuleList))
    ran: set[int] = set()
    for number, block in enumerate(blocks):
        block.register_forward_hook(lambda *_, number=number: ran.add(number))
    with Tracer(work).started() as trace:
        traced = trace(3, 100)
    assert len(ran) == 4
    assert max(traced.evaluation) == pytest.approx(peak_of_a_forward(work, 3, 100), rel=0.01)
    assert max(traced.evaluation) >= peak_of_a_forward(work, 3, 100)
