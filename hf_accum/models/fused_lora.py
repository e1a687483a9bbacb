"""LoRA's linear layers in three matrix products forward and five backward, and its convolutions in one convolution.

peft computes `base(x) + B(A(x)) * scaling` by layers: a product, and a pass over memory for the scaling, for the sum
and for either gradient, each an operation to launch. Here the sum and the scaling are part of the products (as BLAS's
gemm has them, and as Unsloth's LoRA kernels do it). Of a convolution the weights are few and the activations many:
there the product of the adapter's two factors is added to the weights. The result is the same to the last digits that
the order of floating-point additions allows.
"""

from typing import Any

import torch
from peft.tuners.lora.layer import Conv2d, Linear
from torch import Tensor, nn
from torch.autograd import Function


def fuse_lora(model: nn.Module) -> int:
    """Have a model's LoRA layers on plain linear layers and convolutions compute so; returns their number.

    Others (on quantised weights, DoRA) stay as they are, as do these in an autocast, when merged, switched off, with
    dropout on the adapter's input or with several adapters.
    """
    layers = [
        layer for layer in model.modules() if type(layer) is Linear and type(layer.get_base_layer()) is nn.Linear
    ]
    for layer in layers:
        layer.__class__ = FusedLoraLinear
    convolutions = [
        layer for layer in model.modules() if type(layer) is Conv2d and _is_over_all_channels(layer.get_base_layer())
    ]
    for layer in convolutions:
        layer.__class__ = FusedLoraConv2d
    return len(layers) + len(convolutions)


def _is_over_all_channels(layer: nn.Module) -> bool:
    is_plain = type(layer) is nn.Conv2d and layer.groups == 1 and layer.padding_mode == "zeros"
    return is_plain and layer.dilation == (1, 1)  # as peft takes them all to be


class _FusedLinear(Function):
    """x (..., in), weight (out, in), bias (out) or None, a (rank, in), b (out, rank) -> (..., out)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        result = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)
        low = rows @ a.T
        result.addmm_(low, b.T, alpha=scaling)
        ctx.save_for_backward(rows, low, weight, a, b)
        ctx.scaling = scaling
        return result.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        rows, low, weight, a, b = ctx.saved_tensors
        of_rows = gradient.reshape(-1, gradient.shape[-1])
        of_low = (of_rows @ b).mul_(ctx.scaling)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (of_rows @ weight).addmm_(of_low, a).view(*gradient.shape[:-1], -1)
        of_a = of_low.T @ rows if ctx.needs_input_grad[3] else None
        of_b = (of_rows.T @ low).mul_(ctx.scaling) if ctx.needs_input_grad[4] else None
        return of_x, None, None, of_a, of_b, None


class FusedLoraLinear(Linear):
    """A LoRA layer of peft, whose usual forward is one operation."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As peft's."""
        if args or kwargs or not _is_usual(self, x):
            return super().forward(x, *args, **kwargs)
        (name,) = self.active_adapters
        base: Any = self.get_base_layer()
        a, b = self.lora_A[name], self.lora_B[name]
        return _FusedLinear.apply(x, base.weight, base.bias, a.weight, b.weight, self.scaling[name])


class FusedLoraConv2d(Conv2d):
    """A LoRA layer of peft on a convolution over all channels, whose usual forward is one convolution."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As peft's."""
        if args or kwargs or not _is_usual(self, x):
            return super().forward(x, *args, **kwargs)
        (name,) = self.active_adapters
        base: Any = self.get_base_layer()
        a: Any = self.lora_A[name].weight  # (rank, in, height, width)
        b: Any = self.lora_B[name].weight  # (out, rank, 1, 1)
        added = (b.flatten(1) @ a.flatten(1)).view_as(base.weight)
        return base._conv_forward(x, torch.add(base.weight, added, alpha=self.scaling[name]), base.bias)


def _is_usual(layer: Linear | Conv2d, x: Tensor) -> bool:
    names = layer.active_adapters
    if len(names) != 1 or layer.disable_adapters or layer.merged or torch.is_autocast_enabled(x.device.type):
        return False
    (name,) = names
    base: Any = layer.get_base_layer()
    return (
        name in layer.lora_A
        and name not in layer.lora_variant
        and isinstance(layer.lora_dropout[name], nn.Identity)
        and not getattr(layer, "fan_in_fan_out", False)
        and layer.lora_B[name].bias is None
        and not base.weight.requires_grad
        and (base.bias is None or not base.bias.requires_grad)
        and x.dtype == base.weight.dtype == layer.lora_A[name].weight.dtype
    )
