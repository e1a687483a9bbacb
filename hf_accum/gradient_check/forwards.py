"""Losses and gradients of a few texts, under given random numbers, and by how much roundings change them.

Two computations are the same where they differ by no more than another order of the same sums makes of them. A loss
in float32 may differ by 1e-5 of it, its gradient by 1e-4: another order changes the last of seven digits, and layers
pass that on. What differs by more (in 16 bits, or where a deep model makes more of roundings) is compared with what
roundings do to this very model: the same texts run twice more, each layer's outputs moved by one unit in the last
place of their type. That is more than another order does. Faults are of 1 % and more.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_accum.accumulation.example import Example
from hf_accum.gradient_check.layers import rounded_otherwise
from hf_accum.gradient_check.texts import resized
from hf_accum.models.precision import in_float32
from hf_accum.models.state import keeping_state

LOSS, _GRADIENT = 1e-5, 1e-4
_LEAST_LOSS = 0.1  # of an item: of a smaller one the roundings of logits are a larger share
_MOST_ELEMENTS = 2**20  # of the gradient that is compared
_NUM_ROUNDINGS = 2


class CannotCheck(RuntimeError):
    """The model could not be asked; the message says why."""


@dataclass(frozen=True)
class Computed:
    """What a run computes, with the `model` in train mode, as it trains.

    `summed_loss(model, batch)` of what `make_batch(examples, length)` makes, on the device, is a sum over examples.
    At most `num_examples(length)` of a length are run at once, and a length is `padded(length)`; `max_length` is the
    longest one that is allowed, and `vary` whether there are several. `draw` draws what is random in an example, and
    `autocast` is the context of a forward in mixed precision.
    `loss_scale` is what losses are multiplied by before the backward in float16, whose gradients are too small else.
    """

    model: nn.Module
    summed_loss: Callable[[nn.Module, Any], Tensor]
    make_batch: Callable[[Sequence[Example], int], Any]
    device: torch.device
    num_examples: Callable[[int], int]
    padded: Callable[[int], int] = lambda length: length
    max_length: int = 512
    vary: bool = True
    draw: Callable[[Example], Example] = lambda example: example
    autocast: Callable[[], AbstractContextManager[Any]] | None = None
    loss_scale: float = 1.0


def most_tokens(computed: Computed) -> int:
    """Of the largest micro-batch of several texts, padding included; 0: all are computed by themselves."""
    lengths = {computed.max_length, *(length for length in (2**n for n in range(20)) if length < computed.max_length)}
    sizes = [(computed.num_examples(padded), padded) for padded in map(computed.padded, lengths)]
    return max((number * padded for number, padded in sizes if number > 1), default=0)


class Forwards:
    """Runs examples of a run through its model."""

    def __init__(self, computed: Computed, examples: Sequence[Example]) -> None:
        self.computed, self.model = computed, computed.model
        self._examples = examples
        self._autocast = computed.autocast or nullcontext

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """Inside forwards are in float32."""
        before, self._autocast = self._autocast, nullcontext
        try:
            with in_float32(self.model):
                yield
        finally:
            self._autocast = before

    def example(self, index: int, length: int) -> Example:
        """One of the run's examples, as a text of this length where lengths vary."""
        example = self._examples[index % len(self._examples)]
        return self.computed.draw(resized(example, length) if self.computed.vary else example)

    def loss(self, *examples: Example, seed: int = 0, longest: int = 0) -> Tensor:
        """Of examples together, padded to the longest of them, or to a length beyond.

        Raises:
            CannotCheck: if it is not finite.
        """
        set_seed(seed)
        length = self.computed.padded(max(longest, *(example.length for example in examples)))
        batch = self.computed.make_batch(examples, length)
        with self._autocast():
            loss = self.computed.summed_loss(self.model, batch)
        if not bool(loss.isfinite()):
            raise CannotCheck("a loss is not finite")
        return loss

    @torch.no_grad()
    def value(self, *examples: Example, **how: int) -> float:
        """The same as a number, without a graph."""
        return float(self.loss(*examples, **how))

    def with_gradient(self, examples: Sequence[Example]) -> tuple[float, list[Tensor]]:
        """The loss of examples together, and its gradient by the `trained`; none is left in the model."""
        loss = self.loss(*examples)
        scale, parameters = self.computed.loss_scale, [parameter for _, parameter in self.trained]
        found = torch.autograd.grad(loss * scale, parameters, allow_unused=True)
        gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
        return float(loss.detach()), [gradient / scale for gradient in gradients]

    @cached_property
    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """The smallest parameters that are trained, of all layers: their gradients tell as much, at little memory."""
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        total, chosen = 0, []
        for name, parameter in sorted(named, key=lambda item: item[1].numel()):
            total += parameter.numel()
            if chosen and total > _MOST_ELEMENTS:
                break
            chosen.append((name, parameter))
        return chosen


def set_seed(seed: int) -> None:
    """Of all generators that a forward may draw from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class Group:
    """Examples that are compared alone and together; `beyond` says which threshold they are on both sides of."""

    def __init__(self, forwards: Forwards, examples: Sequence[Example], beyond: str = "") -> None:
        self.examples = sorted(examples, key=lambda example: example.length)
        self.beyond = beyond
        self._forwards = forwards

    def __str__(self) -> str:
        if not self._forwards.computed.vary:
            return f"{len(self.examples)} images"
        lengths = ", ".join(str(example.length) for example in self.examples)
        return f"{len(self.examples)} texts of {lengths} tokens"

    def that_fit(self) -> "Group":
        """Those that a run computes together, the longest among them."""
        computed, longest = self._forwards.computed, self.examples[-1]
        number = computed.num_examples(computed.padded(longest.length))
        if number >= len(self.examples):
            return self
        return Group(self._forwards, [*self.examples[: number - 1], longest], self.beyond)

    @cached_property
    def alone(self) -> list[tuple[float, list[Tensor]]]:
        """The loss of each by itself, and its gradient."""
        return [self._forwards.with_gradient([example]) for example in self.examples]

    @cached_property
    def losses(self) -> list[float]:
        """Of each by itself."""
        if "alone" in vars(self):
            return [loss for loss, _ in self.alone]
        return [self._forwards.value(example) for example in self.examples]

    @cached_property
    def gradient(self) -> list[Tensor]:
        """The sum of those of each by itself."""
        return [torch.stack(of_parameter).sum(0) for of_parameter in zip(*(g for _, g in self.alone), strict=True)]

    @property
    def least(self) -> float:
        """A difference of losses that is none in float32."""
        weight = sum(example.weight for example in self.examples)
        return LOSS * max(sum(map(abs, self.losses)), _LEAST_LOSS * weight)

    def is_close(self, one: float, other: float) -> bool:
        """Whether two losses of some of them are the same."""
        difference = abs(one - other)
        return difference <= self.least or difference <= self._rounding_of_losses

    def is_close_gradient(self, other: list[Tensor]) -> bool:
        """Whether a gradient is the one of all of them."""
        difference = _distance(self.gradient, other)
        size = _distance(self.gradient, [torch.zeros_like(part) for part in other])
        return difference <= _GRADIENT * size or difference <= self._rounding_of_gradients

    @cached_property
    def _rounding_of_losses(self) -> float:
        def losses() -> list[float]:
            with keeping_state(self._forwards.model):  # all of them begin with the same: forwards may change it
                return [self._forwards.value(example) for example in self.examples]

        plain = losses()
        return sum(abs(one - other) for _ in self._rounded() for one, other in zip(losses(), plain, strict=True))

    @cached_property
    def _rounding_of_gradients(self) -> float:
        moved = 0.0
        for _ in self._rounded():
            for example, (_, gradient) in zip(self.examples, self.alone, strict=True):
                moved += _distance(self._forwards.with_gradient([example])[1], gradient)
        return moved

    def _rounded(self) -> Iterator[None]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(_NUM_ROUNDINGS):
            with rounded_otherwise(self._forwards.model, generator):
                yield


def _distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    return sum(float((a - b).norm()) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5
