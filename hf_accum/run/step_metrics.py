"""One line of `metrics.jsonl`: an optimizer step in figures, over all ranks."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from hf_accum.accumulation.execution import WindowExecution
from hf_accum.distributed.ranks import bits_float
from hf_accum.files import json_safe


@dataclass(frozen=True)
class StepMetrics:
    """One line of `metrics.jsonl`: counts are over all ranks, seconds and bytes those of the worst one.

    `data_wait_share` is the share of the step's seconds in which a rank's device had no data, of the worst one.
    """

    step: int
    epoch: int
    loss: float
    grad_norm: float
    learning_rate: float
    num_examples: int
    num_items: float
    num_tokens: int
    num_padded_tokens: int
    num_micro_batches: int
    step_seconds: float
    peak_memory_bytes: int
    num_oom_replays: int
    window_digest: str
    data_wait_share: float
    reserved_memory_bytes: int | None = None
    """What the allocator of an accelerator held at most; None: there is none."""
    num_alloc_retries: int | None = None
    """How often it had to free and ask again, of the ranks together, since the run began."""

    def as_json(self) -> dict[str, Any]:
        """For `metrics.jsonl`: without what there is not."""
        return json_safe({name: value for name, value in asdict(self).items() if value is not None})


@dataclass(frozen=True)
class PendingStep:
    """A step whose numbers are still on the devices of their ranks."""

    execution: WindowExecution
    loss_sum: Tensor | float
    grad_norm: Tensor | float
    learning_rate: float
    step_seconds: float
    peak_memory_bytes: int
    allocator: tuple[int, int] | None = None
    """What it held at most, and its retries."""


def merged(pending: PendingStep, columns: Sequence[Sequence[int]]) -> StepMetrics:
    """A step, by the figures of all ranks: a column each, as `RunLog` gathers them."""
    losses, padded, micro_batches, seconds, memory, replays, waited, reserved, retries = columns
    has_allocator = pending.allocator is not None
    step_seconds = max(map(bits_float, seconds))
    window = pending.execution.window
    return StepMetrics(
        step=window.step,
        epoch=window.epoch,
        loss=sum(map(bits_float, losses)) / window.num_items,
        grad_norm=float(pending.grad_norm),
        learning_rate=pending.learning_rate,
        num_examples=window.num_examples,
        num_items=window.num_items,
        num_tokens=window.num_tokens,
        num_padded_tokens=sum(padded),
        num_micro_batches=sum(micro_batches),
        step_seconds=step_seconds,
        peak_memory_bytes=max(memory),
        num_oom_replays=sum(replays),
        window_digest=window.digest,
        data_wait_share=max(map(bits_float, waited)) / step_seconds,
        reserved_memory_bytes=max(reserved) if has_allocator else None,
        num_alloc_retries=sum(retries) if has_allocator else None,
    )
