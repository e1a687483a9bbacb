"""What a card's allocator holds: never less than the tensors, and what its rules make of them."""

import pytest
from traced_cases import MAX_LENGTH, Case, make_workload

from hf_accum.tuner.kernels import workspace_bytes
from hf_accum.tuner.prediction import predict
from hf_accum.tuner.reserved import reserved_bytes
from hf_accum.tuner.tracing import Tracer

CARD = (8, 6)
MIB = 2**20


CHECKPOINTED = Case("llama", lora=True, checkpointing=True, precision="bf16")


@pytest.mark.parametrize("case", [Case("bert"), pytest.param(CHECKPOINTED, marks=pytest.mark.slow)], ids=str)
def test_it_holds_at_least_the_tensors_and_the_workspaces(case: Case) -> None:
    work = make_workload(case)
    needed = predict(work, capability=CARD).needed_bytes(4, MAX_LENGTH)
    reserved = reserved_bytes(work, CARD, 4, MAX_LENGTH) - workspace_bytes(CARD)
    assert reserved >= needed
    assert reserved % (2 * MIB) == 0  # pages
    assert reserved <= needed * 1.1 + 2 * 22 * MIB  # a page more of each of the two pools, and what lies between


def test_what_is_recorded_is_what_is_counted() -> None:
    events: list[tuple[int, int]] = []
    tracer = Tracer(make_workload(Case("bert")), CARD, lambda number, num_bytes: events.append((number, num_bytes)))
    (trace, _) = tracer.run([(3, 16), (3, 16)])
    alive, peak = 0, 0
    sizes: dict[int, int] = {}
    for number, num_bytes in events:
        alive += num_bytes
        peak = max(peak, alive)
        if num_bytes > 0:
            assert number not in sizes
            sizes[number] = num_bytes
        else:
            assert sizes.pop(number) == -num_bytes > 0
    assert peak == max(*trace.training, *trace.evaluation, tracer.fixed.optimizer_peak)
