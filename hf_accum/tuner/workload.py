"""What a rank computes for one window: what is traced, probed and planned."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hf_accum.accumulation.example import TOKENS, Lengths
from hf_accum.models.modes import keeping_modes

Loss = Callable[[nn.Module, int, int, torch.device], Tensor]


Predict = Callable[[nn.Module, int, int, torch.device], object]


@dataclass(frozen=True)
class Workload:
    """What a rank computes for one window, on made-up examples: any number, of any length.

    `loss(model, num_examples, length, device)` runs a forward on the worst case (all labels active, padding
    there) and returns the summed loss, which is then run backward. `predict`, of the same arguments, is the
    forward of evaluation. `optimizer(model)` makes the optimizer that training will use. `max_length` is the
    longest length that training allows; `lengths` say what it is counted in, and whether all examples have it.
    `precision` is accelerate's: no, bf16 or fp16. Where examples go through the model in several parts (the texts of
    a pair), `num_parts` says in how many: what is called an example here is a part of one. `assumed` says what was
    taken for granted where only the data tells.
    """

    model: nn.Module
    optimizer: Callable[[nn.Module], Optimizer]
    loss: Loss
    predict: Predict
    max_length: int
    lengths: Lengths = TOKENS
    precision: str = "no"
    num_parts: int = 1
    assumed: str = ""

    def autocast(self, device: torch.device) -> Any:
        """The context of a forward."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        return nullcontext() if dtype is None else torch.autocast(device.type, dtype)

    def forward_backward(self, num_examples: int, length: int, device: torch.device) -> None:
        """One micro-batch, its gradients added to those there are."""
        with self.autocast(device):
            loss = self.loss(self.model, num_examples, length, device)
        loss.backward()

    def evaluate(self, num_examples: int, length: int, device: torch.device) -> None:
        """One micro-batch of evaluation, the model in eval mode."""
        with keeping_modes(self.model), torch.inference_mode(), self.autocast(device):
            self.model.eval()
            self.predict(self.model, num_examples, length, device)
