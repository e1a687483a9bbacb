"""A copy of a model in float64, and what a loss gives on it: values and gradients, compared."""

import contextlib
import copy
import math
import random
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hf_accum.accumulation.batch_parts import leaves, map_tensors
from hf_accum.errors import UserError, first_line
from hf_accum.gradient_check.promotion import Promotion

IN_FLOAT64 = 1e-9
"""A relative difference that is more than rounding, where all is computed in float64."""
WITH_LESS = 1e-5
"""The same where the model or the loss computes in float32 inside."""
WITH_16_BITS = 3e-2
"""The same where it does in bfloat16 or float16."""


@dataclass(frozen=True)
class Gradient:
    """Of a summed loss, by the parameters' names, and the loss; over one batch or several."""

    loss: float
    by_name: Mapping[str, Tensor]
    without: tuple[str, ...]
    """Parameters that got none."""

    def over(self, weight: float) -> "Gradient":
        """Divided."""
        divided = {name: gradient / weight for name, gradient in self.by_name.items()}
        return Gradient(self.loss / weight, divided, self.without)

    @property
    def is_finite(self) -> bool:
        """Of the loss and all."""
        return math.isfinite(self.loss) and all(bool(of.isfinite().all()) for of in self.by_name.values())

    @property
    def norm(self) -> float:
        """Of all together."""
        return float(sum(float((gradient**2).sum()) for gradient in self.by_name.values()) ** 0.5)


@dataclass(frozen=True)
class Difference:
    """Of a gradient to the right one: the largest, relative to the largest value of that; the ratio of the norms."""

    relative: float
    norm_ratio: float
    parameter: str
    """Where it is largest."""


def compare(gradient: Gradient, right: Gradient) -> Difference:
    """How far off a gradient is."""
    largest = max((float(of.abs().max()) for of in right.by_name.values() if of.numel()), default=0.0) or 1.0
    off = {name: _most(gradient.by_name[name] - of) / largest for name, of in right.by_name.items() if of.numel()}
    parameter = max(off, key=lambda name: off[name], default="")
    return Difference(off.get(parameter, 0.0), gradient.norm / (right.norm or 1.0), parameter)


def _most(values: Tensor) -> float:
    return float(values.abs().nan_to_num(nan=float("inf"), posinf=float("inf")).max())


class Probe:
    """A deep copy of a model in float64, on which a loss is computed; the model itself is left as it is.

    The copy is in the modes of the model; if the whole of it is in eval mode, it is put into train mode. Its buffers
    are the same before each forward.

    Raises:
        UserError: if the model cannot be in float64, or no parameter is to be trained.
    """

    def __init__(self, model: nn.Module, summed_loss: Callable[[nn.Module, Any], Tensor], seed: int = 0) -> None:
        if not isinstance(model, nn.Module):
            raise UserError(f"a model of the type {type(model).__name__}: has to be a torch.nn.Module")
        inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        if not any(parameter.requires_grad for parameter in inner.parameters()):
            raise UserError("a model of which no parameter is to be trained: it has no gradient to check")
        quantized = sorted({str(p.dtype) for p in inner.parameters() if not p.dtype.is_floating_point})
        if quantized:
            raise UserError(
                f"a model with weights of {', '.join(quantized)}: has to be checked before it is quantised"
            )
        device = next(inner.parameters()).device
        self.device = torch.device("cpu") if device.type == "mps" else device
        if any(parameter.is_meta for parameter in inner.parameters()):
            raise UserError("a model on the meta device, without weights: has to be loaded to be checked")
        self.model = _copied(inner).to(self.device).double()
        if hasattr(self.model, "set_experts_implementation"):
            with contextlib.suppress(ValueError):  # of a model without experts
                self.model.set_experts_implementation("eager")  # type: ignore[operator] (the others have no float64)
        self.was_in_eval_mode = not any(module.training for module in inner.modules())
        if self.was_in_eval_mode:
            self.model.train()
        for parameter in self.model.parameters():
            parameter.grad = None
        self._summed_loss, self.seed = summed_loss, seed
        self._parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self._buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        self.keeps_buffers = True
        self.computes_less = False
        """In float32, or less, somewhere inside."""
        self.computes_16_bits = False
        self.count_given = False
        """A model is told `num_items_in_batch`, by which transformers' own losses divide."""

    def on_device(self, batch: Any) -> Any:
        """A batch as the copy takes it."""

        def change(_: str, tensor: Tensor) -> Tensor:
            tensor = tensor.detach().to(self.device)
            return tensor.double() if tensor.is_floating_point() else tensor

        return map_tensors(batch, change)

    def forward(self, batch: Any, seed: int | None = None) -> Tensor:
        """The loss of a batch, with its graph where gradients are on.

        Raises:
            UserError: if it is not one number.
        """
        if self.keeps_buffers:
            with torch.no_grad():
                for buffer, value in self._buffers:
                    buffer.copy_(value)
        self.set_seed(self.seed if seed is None else seed)
        with Promotion():
            loss = self._summed_loss(self.model, self.on_device(batch))
        if not isinstance(loss, Tensor):
            raise UserError(f"a loss of the type {type(loss).__name__}: has to be a tensor, what the model computed")
        if loss.numel() != 1:
            raise UserError(
                f"a loss of the shape {tuple(loss.shape)}: has to be a single number, the sum over the batch; add it "
                "up: `loss.sum()`"
            )
        return loss.reshape(())

    def set_seed(self, seed: int) -> None:
        """Of all generators that a forward may draw of: those of Python, numpy, torch and the device."""
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)

    def loss(self, batch: Any, seed: int | None = None) -> float:
        """The value alone."""
        with torch.no_grad():
            return float(self.forward(batch, seed))

    def gradient(self, batches: Sequence[Any], seed: int | None = None) -> Gradient:
        """Of the summed losses of batches, added up.

        Raises:
            UserError: if the loss does not come from the model that it is given.
        """
        total, by_name, got = 0.0, {name: torch.zeros_like(p) for name, p in self._parameters.items()}, set()
        with torch.enable_grad():
            for batch in batches:
                loss = self.forward(batch, seed)
                total += float(loss.detach())
                if not loss.requires_grad:
                    raise UserError(
                        "a loss without a graph: has to come from the model that it is given, without `no_grad`, "
                        "`detach` or `item`"
                    )
                found = torch.autograd.grad(loss, list(self._parameters.values()), allow_unused=True)
                for name, gradient in zip(self._parameters, found, strict=True):
                    if gradient is not None:
                        by_name[name] += gradient
                        got.add(name)
        if not got:
            raise UserError(
                "a loss that has no gradient by any parameter of the model that it is given: it has to call that "
                "model, which is a copy, and no other"
            )
        return Gradient(total, by_name, tuple(name for name in by_name if name not in got))

    def watch(self, batch: Any) -> None:
        """Look at one forward: whether it goes through less than float64, and is given the number of items.

        Raises:
            UserError: if the loss cannot be computed of the batch.
        """

        def note(_module: Any, _args: Any, kwargs: Any) -> None:
            self.count_given |= kwargs.get("num_items_in_batch") is not None

        handles = [m.register_forward_pre_hook(note, with_kwargs=True) for m in self.model.modules()]
        try:
            with _Downcasts() as downcasts, torch.no_grad():
                self.forward(batch)
        except (UserError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # of the user's loss or model
            raise UserError(
                f"a loss that cannot be computed of the first examples, in float64: {first_line(error)}"
                f"{_place(error)}"
            ) from error
        finally:
            for handle in handles:
                handle.remove()
        self.computes_less, self.computes_16_bits = downcasts.seen, downcasts.seen_16_bits

    @property
    def tolerance(self) -> float:
        """A relative difference that is more than rounding."""
        if self.computes_16_bits:
            return WITH_16_BITS
        return WITH_LESS if self.computes_less else IN_FLOAT64

    def differ(self, first: float, second: float) -> bool:
        """Whether two losses do, by more than rounding."""
        if first != first or second != second:
            return (first != first) != (second != second)
        return abs(first - second) > self.tolerance * max(abs(first), abs(second), 1e-12)


def _copied(model: nn.Module) -> nn.Module:
    """A deep copy; what modules kept of an earlier forward, with its graph, is kept without."""
    kept = {
        id(tensor): tensor.detach().clone()
        for module in model.modules()
        for _, tensor in leaves([*vars(module).values()])
        if not tensor.is_leaf
    }
    return copy.deepcopy(model, kept)


def _place(error: Exception) -> str:
    """The last line outside of libraries where an error came up, in brackets; '' where none is known."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "site-packages" not in frame.filename and not frame.filename.startswith(str(Path(__file__).parent))
    ]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


class _Downcasts(TorchDispatchMode):
    seen = False
    seen_16_bits = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [tensor for _, tensor in leaves(list(args))]
        result = func(*args, **(kwargs or {}))
        if any(tensor.dtype == torch.float64 for tensor in given):
            made = [tensor for _, tensor in leaves([result])]
            self.seen |= any(t.is_floating_point() and t.dtype != torch.float64 and t.numel() > 1 for t in made)
            self.seen |= any(t.dim() == 0 and t.dtype == torch.float32 for t in made)
            self.seen_16_bits |= any(t.dtype in (torch.bfloat16, torch.float16) for t in made)
        return result
