"""The gradient of one window, through accelerate's `accumulate` context."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from accelerate import Accelerator

    from hf_accum.window import MicroBatch


@contextmanager
def accumulate(accelerator: "Accelerator", model: nn.Module, micro_batch: "MicroBatch") -> Iterator[None]:
    """`accelerator.accumulate(model)` for one micro-batch of a window of any number of them.

    Gradients are kept on this rank until the window's last micro-batch, whose backward exchanges them. Inside,
    run the forward, and `accelerator.backward(loss * micro_batch.scale)` on the *summed* loss. Random numbers
    drawn by the forward (dropout) are seeded by the micro-batch.

    Ranks may run different numbers of micro-batches, each at least one.
    """
    if micro_batch.index == 0:
        # accelerate closes a window at every num_steps-th call, and also where a prepared loader ends. Both are
        # set anew for each window: it counts its own micro-batches, and no loader has a say in it.
        accelerator.gradient_state.plugin_kwargs["sync_with_dataloader"] = False
        accelerator.gradient_accumulation_steps = micro_batch.count
        accelerator.step = 0
    _seed(micro_batch.seed, accelerator.device)
    with accelerator.accumulate(model):
        yield
    if accelerator.sync_gradients != (micro_batch.index == micro_batch.count - 1):
        raise RuntimeError(
            f"micro-batch {micro_batch.index + 1} of {micro_batch.count} did not match accelerate's own count: "
            "run each micro-batch of a window once, in order, and call accelerator.accumulate nowhere else"
        )


def _seed(seed: int, device: torch.device) -> None:
    # Not torch.manual_seed: it asks after every backend that there could be, which takes half a millisecond.
    torch.random.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
