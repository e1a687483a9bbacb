"""Bytes that are predicted from a few traces: what real tensors take, and a trace of any size says."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from traced_cases import ARCHITECTURES, MAX_LENGTH, Case, make_optimizer, make_workload, predicted, traces_of

from hf_accum.device.live_bytes import LiveBytes, sum_bytes
from hf_accum.tuner.tracing import Tracer
from hf_accum.tuner.workload import Workload

CPU = torch.device("cpu")


NUM_LAYERS = 2


CASES = [
    *(Case(architecture) for architecture in ARCHITECTURES),
    *(Case(architecture, lora=True, checkpointing=True) for architecture in ARCHITECTURES),
    *(Case(architecture, lora=True, precision="bf16") for architecture in ARCHITECTURES),
    Case("bert", lora=True),
    Case("bert", checkpointing=True, precision="bf16"),
]
IN_SLOW = [case for case in CASES if case.architecture in ("distilbert", "gpt2", "llama") and case.lora]


def of_each(cases: list[Case]) -> pytest.MarkDecorator:
    slow = pytest.mark.slow
    return pytest.mark.parametrize(
        "case", [pytest.param(case, id=str(case), marks=slow if case in IN_SLOW else ()) for case in cases]
    )


def in_training(workload: Workload) -> list[Tensor]:
    """All that is alive between two micro-batches of a real training, after its first step."""
    trainable = [p for p in workload.model.parameters() if p.requires_grad]
    gradients = []
    for parameter in trainable:
        parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    optimizer = make_optimizer(workload.model)
    optimizer.step()
    state = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    return [*workload.model.parameters(), *workload.model.buffers(), *gradients, *state]


def sizes_of(case: Case) -> list[tuple[int, int]]:
    if case.architecture == "vit":
        return [(1, MAX_LENGTH), (5, MAX_LENGTH)]
    return [(1, MAX_LENGTH), (6, 19), (9, 5)]


def peak_of_the_allocator(work: Callable[[], None]) -> int:
    """What torch's own CPU allocator says of all memory taken and given back, kernels' own included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    assert profiler.profiler is not None
    kineto = profiler.profiler.kineto_results
    assert kineto is not None
    events = sorted((e for e in kineto.events() if e.name() == "[memory]"), key=lambda e: e.start_ns())
    current = peak = 0
    for event in events:
        current += event.nbytes()  # type: ignore[attr-defined]
        peak = max(peak, current)
    assert current == 0
    return peak


@of_each(CASES)
def test_a_prediction_is_what_real_tensors_take(case: Case) -> None:
    workload, prediction = predicted(case)
    held = in_training(workload)
    assert prediction.fixed.total == sum_bytes(held)
    for size in sizes_of(case):
        for work, peak in (
            (workload.forward_backward, prediction.training),
            (workload.evaluate, prediction.evaluation),
        ):
            with LiveBytes(held=held) as live:
                work(*size, CPU)
            assert 1.00 <= peak.bytes_at(*size) / live.peak_bytes <= 1.05


@of_each([case for case in CASES if case.precision == "no"])
def test_a_prediction_is_what_the_allocator_gives_out(case: Case) -> None:
    """In float32: in half precision kernels copy what they are given, which no operation shows.

    Two things are not seen: a state of the random generator for each layer that is computed again, and one
    meanwhile, which are counted here; and what kernels take and give back, which is below 1 %.
    """
    workload, prediction = predicted(case)
    held = in_training(workload)
    states = (NUM_LAYERS + 1) * torch.get_rng_state().nbytes if case.checkpointing else 0
    for size in sizes_of(case):
        workload.forward_backward(*size, CPU)
        taken = peak_of_the_allocator(lambda size=size: workload.forward_backward(*size, CPU))
        expected = prediction.training.bytes_at(*size) + states
        assert 0.99 <= expected / (sum_bytes(held) + taken) <= 1.05


@of_each(CASES)
def test_a_prediction_is_to_the_byte_what_a_trace_at_any_size_says(case: Case) -> None:
    workload, prediction = predicted(case)
    sizes = [*sizes_of(case), (40, MAX_LENGTH)]
    if case.architecture != "vit":
        sizes += [(3, 2), (4, 31)]
    tracer = Tracer(workload)
    for trace in traces_of(tracer, sizes):
        size = (trace.num_examples, trace.length)
        assert prediction.training.bytes_at(*size) == max(trace.training), size
        assert prediction.evaluation.bytes_at(*size) == max(trace.evaluation), size
        assert prediction.activations.bytes_at(*size) == trace.training[trace.forward_end], size
    assert tracer.fixed == prediction.fixed
    assert tracer.state_shapes == prediction.state_shapes


@of_each([case for case in CASES if case.architecture != "vit"])
def test_a_single_token_takes_no_more_than_predicted(case: Case) -> None:
    """Transposed or not it is contiguous, and some copies of longer texts fall away."""
    workload, prediction = predicted(case)
    for trace in traces_of(Tracer(workload), [(1, 1), (7, 1)]):
        size = (trace.num_examples, trace.length)
        assert 1.00 <= prediction.training.bytes_at(*size) / max(trace.training) <= 1.05
        assert 1.00 <= prediction.evaluation.bytes_at(*size) / max(trace.evaluation) <= 1.05


@pytest.fixture(params=[Case("bert"), Case("llama", lora=True, checkpointing=True)], ids=str)
def workload(request: pytest.FixtureRequest) -> Workload:
    work = make_workload(request.param)
    work.model.eval()
    next(work.model.children()).train()
    for parameter in list(work.model.parameters())[::2]:
        parameter.grad = torch.full_like(parameter, 3) if parameter.requires_grad else None
    return work
