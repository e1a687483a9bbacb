"""Windows of tiny models on any device: their gradients, replays, and fp16's overflows."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from failing import Failing
from gpu_cases import Job, allocated_bytes
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from window_cases import (
    TASKS,
    batch,
    largest_relative_difference,
    make_examples,
    make_model,
    make_window,
    unsplit_gradient,
)

from hf_accum import accumulate
from hf_accum.accumulation.capacity import Capacity, WorkingCapacity
from hf_accum.accumulation.execution import MicroBatch, WindowExecution
from hf_accum.config.optimization import OptimizationFlags
from hf_accum.distributed.ranks import OneRank
from hf_accum.models.optimizer import build_optimizer
from hf_accum.recipe import NonFiniteCheck

LENGTHS = (7, 12, 3, 9, 5, 5, 10)

During = Callable[[MicroBatch], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Outcome:
    """A window that went through, its gradients still there; bytes allocated where each of its attempts began."""

    window: WindowExecution
    difference: float
    """To one unsplit batch in plain torch on the same device, relative."""
    allocated: list[int]


def run_window(
    accelerator: Accelerator, name: str, size: int, during: During = lambda micro_batch: nullcontext()
) -> Outcome:
    """A window of a task, float64, in micro-batches of at most so many examples."""
    task, device = TASKS[name], accelerator.device
    model = make_model(task).to(device)
    examples = make_examples(task, LENGTHS)
    reference, _ = unsplit_gradient(model, task, examples)
    window = make_window(examples, examples[0], whole=examples)

    def forward_backward(micro_batch: MicroBatch) -> None:  # its tensors are gone when it is through
        inputs, labels = batch(micro_batch.examples, device)
        loss = task.objective(model(**inputs).logits, labels)
        accelerator.backward(micro_batch.scaled(loss))

    allocated = []
    for micro_batch in window.micro_batches(size):
        if micro_batch.index == 0:
            allocated.append(allocated_bytes(device))
        with accumulate(accelerator, model, micro_batch), during(micro_batch):
            forward_backward(micro_batch)
    return Outcome(window, largest_relative_difference(model, reference), allocated)


def run_replayed(accelerator: Accelerator, name: str, at: int) -> Outcome:
    """The same, memory said to run out at an operation in mid-window."""
    failing = Failing(at)
    outcome = run_window(accelerator, name, 3, failing.during)
    assert failing.num_failures == 1
    return outcome


@dataclass(frozen=True)
class RealReplay:
    """A window whose first attempts were too large for the device, and what it left."""

    window: WindowExecution
    gradients: list[Tensor]
    allocated: list[int]


def run_job_window(job: Job, accelerator: Accelerator, most: int, num_examples: int, length: int) -> RealReplay:
    """A window of so many texts of nothing, all of one length, at first in micro-batches of at most `most`."""
    examples = make_examples(TASKS["plain"], [length] * num_examples)
    window = make_window(examples, examples[0], whole=examples)
    allocated = []

    def forward_backward(micro_batch: MicroBatch) -> None:
        loss, _batch = job.work.forward(len(micro_batch.examples), micro_batch.length, job.device)
        accelerator.backward(micro_batch.scaled(loss))

    for micro_batch in window.micro_batches(WorkingCapacity(Capacity(most))):
        if micro_batch.index == 0:
            allocated.append(allocated_bytes(job.device))
        with accumulate(accelerator, job.work.model, micro_batch):
            forward_backward(micro_batch)
    gradients = [p.grad.clone() for p in job.work.model.parameters() if p.grad is not None]
    job.work.model.zero_grad()
    return RealReplay(window, gradients, allocated)


def relative_difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Of all of them together, by their norms."""
    distance = sum(float((a - b).double().square().sum()) for a, b in zip(found, expected, strict=True))
    return (distance / sum(float(b.double().square().sum()) for b in expected)) ** 0.5


@dataclass(frozen=True)
class Fp16Run:
    """Of windows under a scaler whose scale is too high at first: which had a step, and the state after each."""

    had_step: list[bool]
    weights: list[Tensor]
    schedule: list[int]
    scales: list[float]


def run_fp16(accelerator: Accelerator, folder: Path, num_windows: int, is_autocast: bool = True) -> Fp16Run:
    """The loop of the recipes with fused AdamW and a schedule, in float32 weights."""
    task, device = TASKS["plain"], accelerator.device
    plain = make_model(task).float().to(device)
    inner = build_optimizer(plain, OptimizationFlags(learning_rate=0.01))
    scheduler = LambdaLR(inner, lambda step: 1 / (1 + step))
    optimizer: Any = accelerator.prepare_optimizer(inner)
    model: nn.Module = accelerator.prepare_model(plain, evaluation_mode=True) if is_autocast else plain
    scaler = accelerator.scaler
    assert scaler is not None
    nonfinite = NonFiniteCheck(OneRank(), folder, print, max_skips=0, scaler=scaler)
    run = Fp16Run([], [_values(plain)], [scheduler.last_epoch], [scaler.get_scale()])
    examples = make_examples(task, LENGTHS)
    for _ in range(num_windows):
        window = make_window(examples, examples[0], whole=examples)
        for micro_batch in window.micro_batches(2):
            with accumulate(accelerator, model, micro_batch):
                inputs, labels = batch(micro_batch.examples, device)
                loss = task.objective(model(**inputs).logits, labels)
                accelerator.backward(micro_batch.scaled(loss))
        norm = accelerator.clip_grad_norm_(plain.parameters(), 1.0)
        accepted = nonfinite.accepts(window, norm)
        if accepted:
            optimizer.step()
            scheduler.step()
        optimizer.zero_grad()
        run.had_step.append(accepted)
        run.weights.append(_values(plain))
        run.schedule.append(scheduler.last_epoch)
        run.scales.append(scaler.get_scale())
    return run


def _values(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().float().cpu() for p in model.parameters()])


def check_fp16(run: Fp16Run) -> int:
    """An overflow changes nothing but the scale, which it halves; any other window has its step. Their number."""
    for index, had_step in enumerate(run.had_step):
        same = torch.equal(run.weights[index], run.weights[index + 1])
        assert same != had_step
        assert run.schedule[index + 1] == run.schedule[index] + had_step
        assert had_step or run.scales[index + 1] == run.scales[index] / 2
    num_overflows = run.had_step.count(False)
    assert run.had_step == [False] * num_overflows + [True] * (len(run.had_step) - num_overflows)
    return num_overflows
