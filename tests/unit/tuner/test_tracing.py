"""Traces on fake tensors: they leave the model as it was, and see what they cannot follow."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from traced_cases import Case, make_optimizer, make_workload, predicted, traces_of
from workload_cases import of_sizes

from hf_accum.device.live_bytes import LiveBytes, sum_bytes
from hf_accum.tuner.prediction import predict
from hf_accum.tuner.tracing import CannotTrace, Tracer
from hf_accum.tuner.workload import Workload

# Models


@pytest.mark.parametrize("lora", [False, True])
def test_what_does_not_depend_on_the_micro_batch(lora: bool) -> None:
    workload, prediction = predicted(Case("bert", lora=lora))
    model = workload.model
    trainable = sum_bytes(p for p in model.parameters() if p.requires_grad)
    fixed = prediction.fixed
    assert fixed.weights == sum_bytes([*model.parameters(), *model.buffers()])
    assert fixed.gradients == trainable
    num_trained = sum(1 for p in model.parameters() if p.requires_grad)
    assert fixed.optimizer_state == 2 * trainable + 4 * num_trained  # two moments, and the number of the step
    optimizer = make_optimizer(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    with LiveBytes(held=[*model.parameters(), *model.buffers(), *gradients]) as live:
        optimizer.step()
    assert fixed.optimizer_peak == live.peak_bytes
    shapes = [(t.shape, t.dtype) for s in optimizer.state.values() for t in s.values()]
    assert list(prediction.state_shapes) == shapes


# What a trace leaves as it was


def state_of(model: nn.Module) -> Sequence[object]:
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return [
        (
            name,
            id(t),
            t.data_ptr(),
            t.requires_grad,
            id(t.grad),
            t._version,
            None if t.grad is None else t.grad._version,
        )
        for name, t in tensors
    ] + [(name, module.training) for name, module in model.named_modules()]


@pytest.fixture(params=[Case("bert"), Case("llama", lora=True, checkpointing=True)], ids=str)
def workload(request: pytest.FixtureRequest) -> Workload:
    work = make_workload(request.param)
    work.model.eval()
    next(work.model.children()).train()
    for parameter in list(work.model.parameters())[::2]:
        parameter.grad = torch.full_like(parameter, 3) if parameter.requires_grad else None
    return work


def test_a_trace_leaves_the_model_as_it_was(workload: Workload) -> None:
    model = workload.model
    before, values = state_of(model), {name: t.clone() for name, t in model.state_dict().items()}
    random = torch.get_rng_state()
    traces_of(Tracer(workload), [(2, 8)])
    assert state_of(model) == before
    assert all(torch.equal(t, values[name]) for name, t in model.state_dict().items())
    assert all(bool((p.grad == 3).all()) for p in model.parameters() if p.grad is not None)
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("where", ["optimizer", "loss", "backward", "predict"])
def test_a_trace_that_fails_leaves_the_model_as_it_was(workload: Workload, where: str) -> None:
    model = workload.model
    before = state_of(model)

    def fail(*_: object) -> Tensor:
        raise ValueError("the work failed")

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, *gradients: Tensor) -> Tensor:
            return fail()

    def loss(model: nn.Module, batch: object) -> Tensor:
        return Backward.apply(workload.summed_loss(model, batch))  # type: ignore[return-value]

    work = replace(
        workload,
        optimizer=fail if where == "optimizer" else workload.optimizer,  # type: ignore[arg-type]
        summed_loss={"loss": fail, "backward": loss}.get(where, workload.summed_loss),
        predict=fail if where == "predict" else workload.predict,
    )
    with pytest.raises(ValueError, match="the work failed"):
        traces_of(Tracer(work), [(2, 8)])
    assert state_of(model) == before


class Tied(nn.Module):
    """A language model's: one weight in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.head = nn.Linear(8, 50, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("one", torch.ones(3))
        self.other = nn.Module()
        self.other.register_buffer("same", self.get_buffer("one"))

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embedding(ids))


def simple_workload(model: nn.Module, forward: Callable[[nn.Module, int, int], Tensor]) -> Workload:
    return of_sizes(
        model,
        lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, foreach=False),
        lambda m, n, length, device: forward(m, n, length).sum(),
        lambda m, n, length, device: forward(m, n, length),
        max_length=16,
    )


def test_tied_weights_stay_tied_and_count_once() -> None:
    model = Tied()
    work = simple_workload(model, lambda m, n, length: m(torch.zeros(n, length, dtype=torch.long)))
    tracer = Tracer(work)
    traces_of(tracer, [(2, 4)])
    assert model.head.weight is model.embedding.weight
    assert model.other.same is model.one
    assert tracer.fixed.weights == 50 * 8 * 4 + 12
    assert tracer.fixed.gradients == tracer.fixed.optimizer_state == 50 * 8 * 4


def test_a_model_without_weights_is_traced_as_one_with_them() -> None:
    def work(device: str) -> Workload:
        with torch.device(device):
            model = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 2))
        return simple_workload(model, lambda m, n, length: m(torch.zeros(n, length, 8)))

    on_meta, on_cpu = Tracer(work("meta")), Tracer(work("cpu"))
    assert traces_of(on_meta, [(2, 4), (3, 9)]) == traces_of(on_cpu, [(2, 4), (3, 9)])
    assert on_meta.fixed == on_cpu.fixed


def _by_value(x: Tensor) -> Tensor:
    return x * 2 if bool(x.sum() > 0) else x


@pytest.mark.parametrize(
    "depends",
    [
        _by_value,
        lambda x: x * x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x * len(x.nonzero()),
        lambda x: x * x.detach().numpy().sum(),
        lambda x: F.pad(x, (0, int(x.detach().argmax()))),
    ],
    ids=["branch", "item", "mask", "nonzero", "numpy", "size"],
)
def test_a_model_that_depends_on_values_cannot_be_traced(depends: Callable[[Tensor], Tensor]) -> None:
    model = nn.Linear(4, 4)
    before = state_of(model)
    work = simple_workload(model, lambda m, n, length: depends(m(torch.ones(n, length, 4))))
    with pytest.raises(CannotTrace, match="Linear cannot be traced without a device"):
        traces_of(Tracer(work), [(2, 4)])
    assert state_of(model) == before
    with pytest.raises(CannotTrace):
        predict(work)
    assert model(torch.ones(1, 4)).shape == (1, 4)


def test_what_fails_is_raised_and_not_logged_too() -> None:
    log = logging.getLogger("torch._subclasses.fake_tensor")
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    log.addHandler(handler)
    try:
        work = simple_workload(nn.Linear(4, 4), lambda m, n, length: torch.mm(m(torch.ones(n, 4)), torch.ones(3, 3)))
        with pytest.raises(CannotTrace):
            traces_of(Tracer(work), [(2, 4)])
    finally:
        log.removeHandler(handler)
    assert not records
    assert not log.disabled


def test_traces_in_several_threads_are_the_same() -> None:
    def trace(_: int) -> list[list[int]]:
        work = make_workload(Case("llama"))
        return [t.training for t in traces_of(Tracer(work), [(1, 8), (2, 8), (1, 8), (2, 8)])]

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(trace, range(8)))
    assert all(result == results[0] for result in results)
