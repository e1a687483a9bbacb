"""What a rank computes for one window: what is traced, probed and planned."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hf_accum.accumulation.example import TOKENS, Lengths
from hf_accum.config.lora import LoraConfig
from hf_accum.config.recipe import RecipeConfig
from hf_accum.models.forward_failure import Again
from hf_accum.models.modes import keeping_modes
from hf_accum.models.optimizer import build_optimizer
from hf_accum.models.precision import compute_dtype
from hf_accum.models.spec import ModelSpec
from hf_accum.models.trainable import without_weights
from hf_accum.models.unused_adapters import leave_out_unused_adapters
from hf_accum.tuner.fake_tensors import on_fake_tensors

_SHORT = 9  # no multiple of anything that models cut into


class Computation(Protocol):
    """What a task computes with a model, by the very functions that the training and the evaluation call."""

    @property
    def max_length(self) -> int:
        """Of an example, in its unit."""
        ...

    @property
    def lengths(self) -> Lengths:
        """What a length is counted in, and whether all examples have the same."""
        ...

    @property
    def num_parts(self) -> int:
        """In how many parts an example goes through the model: 2 for a pair of texts, as a rule 1."""
        ...

    def summed_loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of a batch, summed over its items: a scalar in float32 (float64 for float64 logits)."""
        ...

    def predict(self, model: nn.Module, batch: Any) -> object:
        """What an evaluation keeps of a batch."""
        ...

    def dummy_batch(self, model: nn.Module, num_examples: int, length: int, device: torch.device) -> Any:
        """A batch of made-up examples, for the worst case: all labels count, padding is there if it can be.

        The same operations at any size: a trace compares them one by one.
        """
        ...


@dataclass(frozen=True)
class Workload:
    """A model, its optimizer, the forwards of training and evaluation, and made-up batches for them.

    `summed_loss(model, batch)` is what training runs forward and backward, `predict(model, batch)` the forward of
    evaluation; `make_batch(num_examples, length, device)` makes a batch. `optimizer(model)` makes the optimizer that
    training will use. `max_length` is the longest length that training allows; `lengths` say what it is counted in,
    and whether all examples have it. `precision` is accelerate's: no, bf16 or fp16. Where examples go through the
    model in several parts (the texts of a pair), `num_parts` says in how many: what is called an example here is a
    part of one. `assumed` says what was taken for granted where only the data tells. One that does not train is of
    forwards alone, as a prediction's, and has no gradients and no optimizer.
    """

    model: nn.Module
    optimizer: Callable[[nn.Module], Optimizer]
    summed_loss: Callable[[nn.Module, Any], Tensor]
    predict: Callable[[nn.Module, Any], object]
    make_batch: Callable[[int, int, torch.device], Any]
    max_length: int
    lengths: Lengths = TOKENS
    precision: str = "no"
    num_parts: int = 1
    assumed: str = ""
    trains: bool = True

    def autocast(self, device: torch.device) -> Any:
        """The context of a forward."""
        dtype = compute_dtype(self.precision)
        return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)

    def forward(self, num_examples: int, length: int, device: torch.device) -> tuple[Tensor, Any]:
        """The summed loss of a micro-batch, and the batch, which is there until the backward is through."""
        batch = self.make_batch(num_examples, length, device)
        with self.autocast(device):
            return self.summed_loss(self.model, batch), batch

    def run(self, num_examples: int, length: int, device: torch.device) -> None:
        """One micro-batch of what it does."""
        (self.forward_backward if self.trains else self.evaluate)(num_examples, length, device)

    def forward_backward(self, num_examples: int, length: int, device: torch.device) -> None:
        """One micro-batch, its gradients added to those there are."""
        loss, _batch = self.forward(num_examples, length, device)
        loss.backward()

    def leave_out_unused_adapters(self, lora: LoraConfig, device: torch.device) -> list[str]:
        """As the function of that name does, by the loss of two made-up examples, short ones where lengths vary."""
        return leave_out_unused_adapters(self.model, lora, lambda: self.forward(2, self._short, device)[0])

    def again(self, device: torch.device) -> Again:
        """For `naming_forward_failure`: a made-up example in another model, or another precision."""

        def run(model: nn.Module, precision: str) -> None:
            replace(self, model=model, precision=precision).forward(1, self._short, device)

        return run

    @property
    def _short(self) -> int:
        return min(_SHORT, self.max_length) if self.lengths.vary else self.max_length

    def evaluate(self, num_examples: int, length: int, device: torch.device) -> None:
        """One micro-batch of evaluation, the model in eval mode."""
        with keeping_modes(self.model), torch.no_grad():
            self.model.eval()
            batch = self.make_batch(num_examples, length, device)
            with self.autocast(device):
                self.predict(self.model, batch)


def workload_of(
    model: nn.Module, task: Computation, config: RecipeConfig, precision: str = "no", assumed: str = ""
) -> Workload:
    """What a run with these flags computes with a model for a task."""
    return Workload(
        model,
        lambda model: build_optimizer(model, config),
        task.summed_loss,
        task.predict,
        lambda num_examples, length, device: task.dummy_batch(model, num_examples, length, device),
        task.max_length,
        task.lengths,
        precision,
        task.num_parts,
        assumed,
    )


def planned(
    spec: ModelSpec, task: Computation, config: RecipeConfig, precision: str = "no", assumed: str = ""
) -> Workload:
    """The same of a model without weights, from its config alone: for a plan.

    Raises:
        UserError: as `without_weights` does.
    """
    model = without_weights(spec, config, precision)
    workload = workload_of(model, task, config, precision, assumed)
    with on_fake_tensors(model):
        workload.leave_out_unused_adapters(config.lora, torch.device("cpu"))
    return workload
