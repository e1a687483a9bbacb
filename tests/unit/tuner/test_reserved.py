"""What a card's allocator holds: never less than the tensors, and what its rules make of them."""

import pytest
from traced_cases import MAX_LENGTH, Case, make_workload

from hf_accum.tuner.allocator import CachingAllocator
from hf_accum.tuner.kernels import workspace_bytes
from hf_accum.tuner.memory_events import MemoryEvents
from hf_accum.tuner.prediction import predict_from
from hf_accum.tuner.reserved import ReservedBytes
from hf_accum.tuner.tracing import Tracer

CARD = (8, 6)
MIB = 2**20


CHECKPOINTED = Case("llama", lora=True, checkpointing=True, precision="bf16")


@pytest.mark.parametrize("case", [Case("bert"), pytest.param(CHECKPOINTED, marks=pytest.mark.slow)], ids=str)
def test_it_holds_at_least_the_tensors_and_the_workspaces(case: Case) -> None:
    tracer = Tracer(make_workload(case), CARD)
    with tracer.started() as trace:
        needed = predict_from(tracer, trace).needed_bytes(4, MAX_LENGTH)
        of_card = ReservedBytes(tracer, trace).bytes_at(4, MAX_LENGTH)
    reserved = of_card - workspace_bytes(CARD)
    assert reserved >= needed
    assert reserved % (2 * MIB) == 0  # pages
    assert reserved <= needed * 1.1 + 2 * 22 * MIB  # a page more of each of the two pools, and what lies between


def replay_by_hand(allocator: CachingAllocator, name: object, of: MemoryEvents, num_events: int) -> None:
    """At each event first what ends there is freed, then what begins there is allocated. What is left stays."""
    for event in range(num_events):
        for made in range(event):
            if of.num_bytes[made] and of.freed_at[made] == event:
                allocator.free((name, made))
        if of.num_bytes[event]:
            allocator.allocate((name, event), of.num_bytes[event])


def free_by_hand(allocator: CachingAllocator, name: object, of: MemoryEvents, num_events: int) -> None:
    """What is left of these events."""
    for made in range(num_events):
        if of.num_bytes[made] and of.freed_at[made] >= num_events:
            allocator.free((name, made))


def test_it_is_what_the_allocator_holds_for_each_tensor_as_it_lives() -> None:
    """Weights and state stay; a micro-batch, its evaluation and an optimizer step come twice."""
    tracer = Tracer(make_workload(Case("bert")), CARD)
    with tracer.started() as trace:
        of_card = ReservedBytes(tracer, trace).bytes_at(3, 16)
        events, fixed, step = trace(3, 16).events, tracer.fixed_events, tracer.step_events
    allocator = CachingAllocator(expandable_segments=True)
    replay_by_hand(allocator, "fixed", fixed, len(fixed.num_bytes))
    for name, of in enumerate([events, step, events, step]):
        replay_by_hand(allocator, name, of, len(of.num_bytes))
        free_by_hand(allocator, name, of, len(of.num_bytes))
    assert of_card == allocator.peak_reserved_bytes + workspace_bytes(CARD)


def test_what_is_recorded_is_what_is_counted() -> None:
    tracer = Tracer(make_workload(Case("bert")), CARD)
    with tracer.started() as trace:
        traced = trace(3, 16)
    alive, peak = 0, 0
    for events in (tracer.fixed_events, traced.events):
        assert events.others_freed == ()
        for event, num_bytes in enumerate(events.num_bytes):
            alive += num_bytes - sum(
                events.num_bytes[made] for made in range(event) if events.freed_at[made] == event
            )
            peak = max(peak, alive)
        total = len(events.num_bytes)
        if events is tracer.fixed_events:
            assert alive == tracer.fixed.total == traced.start_bytes
        else:
            left = sum(b for b, at in zip(events.num_bytes, events.freed_at, strict=True) if at == total)
            assert alive - left == tracer.fixed.total
    assert peak == max(*traced.training, *traced.evaluation, tracer.fixed.optimizer_peak)


@pytest.mark.by_hand
def test_the_largest_is_what_brute_force_finds() -> None:
    tracer = Tracer(make_workload(Case("bert", lora=True)), CARD)
    with tracer.started() as trace:
        prediction = predict_from(tracer, trace)
        reserved = ReservedBytes(tracer, trace)
        sizes = [reserved.bytes_at(number, MAX_LENGTH) for number in range(1, 31)]
        assert sizes == sorted(sizes)
        assert sizes[-1] - sizes[0] > 10 * MIB  # there are pages to tell apart
        for budget in range(sizes[0] - MIB, sizes[-1] + 2 * MIB, 2 * MIB):
            expected = sum(of <= budget for of in sizes)
            assert reserved.largest(prediction, MAX_LENGTH, budget, 30) == expected


def test_over_windows_it_only_grows_and_begins_with_what_one_holds() -> None:
    """By real lengths, each micro-batch replayed on what the ones before left."""
    tracer = Tracer(make_workload(Case("bert")), CARD)
    windows = [[(2, 8), (40, 32)], [(40, 32), (2, 8)], [(200, 16)], [(1, 32), (199, 16)], [(7, 24)] * 3]
    with tracer.started() as trace:
        reserved = ReservedBytes(tracer, trace)
        peaks = reserved.over(windows)
        assert reserved.over(windows[:1]) == peaks[:1]
        allocator = CachingAllocator(expandable_segments=True)
        expected: list[int] = []
        replay_by_hand(allocator, "fixed", tracer.fixed_events, len(tracer.fixed_events.num_bytes))
        for window in windows:
            for name, of in enumerate([*(trace(*m).events for m in window), tracer.step_events]):
                num_events = of.training_end or len(of.num_bytes)  # evaluation is left out
                replay_by_hand(allocator, name, of, num_events)
                free_by_hand(allocator, name, of, num_events)
            expected.append(allocator.peak_reserved_bytes + workspace_bytes(CARD))
    assert peaks == sorted(peaks)
    assert peaks == expected
    assert peaks[-1] > peaks[0]


def test_a_later_optimizer_step_counts_where_it_takes_more_than_a_micro_batch() -> None:
    """Of tiny micro-batches: the step's own tensors, which it frees, are what a window needs most for."""
    tracer = Tracer(make_workload(Case("bert")), CARD)
    with tracer.started() as trace:
        taken = sum(tracer.step_events.num_bytes)
        reserved = ReservedBytes(tracer, trace)
        tracer.step_events = MemoryEvents((64 * MIB, 0), (2, 2))
        with_more = ReservedBytes(tracer, trace)
        assert taken > 0
        assert with_more.bytes_at(1, 4) - reserved.bytes_at(1, 4) >= 40 * MIB
