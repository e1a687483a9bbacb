"""Activations kept in host memory between the forward and the backward."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from hf_accum.errors import UserError

_FROM_BYTES = 256 * 2**10
"""Smaller tensors stay: a copy of its own takes longer than they are worth."""

Kept = Tensor | tuple[torch.device, Tensor]


class ActivationOffload:
    """What autograd keeps of a model's forward goes to the host, and comes back when the backward asks for it.

    Weights stay where they are. On the host it lies in pinned memory, from which a copy is quick. The gradient is the
    same to the last bit. torch's `save_on_cpu` does this too, and takes a copy of each weight with it.

    `host` is where it goes: a trace takes `meta`, which has no memory.
    """

    def __init__(self, model: nn.Module) -> None:
        self.host = torch.device("cpu")
        self._model = model
        self._forward: Callable[..., Any] = model.forward
        self._weights: frozenset[int] = frozenset()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own forward."""
        if not torch.is_grad_enabled():
            return self._forward(*args, **kwargs)
        self._weights = frozenset(
            tensor.untyped_storage()._cdata for tensor in (*self._model.parameters(), *self._model.buffers())
        )
        with saved_tensors_hooks(self._pack, _unpack):
            return self._forward(*args, **kwargs)

    def _pack(self, tensor: Tensor) -> Kept:
        if tensor.nbytes < _FROM_BYTES or tensor.untyped_storage()._cdata in self._weights:
            return tensor
        pinned = self.host.type == "cpu" and tensor.device.type == "cuda"
        kept = torch.empty_like(tensor, device=self.host, pin_memory=pinned)
        return tensor.device, kept.copy_(tensor, non_blocking=pinned)


def _unpack(kept: Kept) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    device, tensor = kept
    if tensor.device.type == "meta":  # in a trace: values are nothing there
        return torch.empty_like(tensor, device=device)
    return tensor.to(device, non_blocking=True)


def check_offload(device: torch.device) -> None:
    """Refuse to offload where there is no other memory.

    Raises:
        UserError: naming the device.
    """
    if device.type == "cpu":
        raise UserError("`activation_offload` true: has to be false on a CPU, whose activations are in host memory")


def offload_activations(model: nn.Module) -> None:
    """Have the forward of a model keep its activations in host memory."""
    model.forward = ActivationOffload(model)  # type: ignore[method-assign]


def offload_of(model: nn.Module) -> ActivationOffload | None:
    """What offloads the activations of a model, if anything does."""
    forward = model.__dict__.get("forward")
    return forward if isinstance(forward, ActivationOffload) else None
