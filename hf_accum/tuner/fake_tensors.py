"""A model on fake tensors: what is computed with it has shapes and types, and no memory."""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def on_fake_tensors(model: nn.Module) -> Iterator[None]:
    """Inside a model's parameters and buffers are fake tensors of the CPU, and all that is made of them.

    They may be on any device, or on `meta`; afterwards they are back, untouched. Tied weights stay tied.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    # Real tensors that are no parameter or buffer (weights of classes, say) are taken in as constants.
    with _torch_logs_no_failures(), FakeTensorMode(allow_non_fake_inputs=True), _faked(model):
        yield


@contextmanager
def _torch_logs_no_failures() -> Iterator[None]:
    """What fails on fake tensors is raised: keep torch from logging it as well, with its whole traceback."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


@contextmanager
def _faked(model: nn.Module) -> Iterator[None]:
    places: list[tuple[dict[str, Any], str, Tensor]] = [
        (tensors, name, tensor)
        for module in model.modules()
        for tensors in (module._parameters, module._buffers)
        for name, tensor in tensors.items()
        if tensor is not None
    ]
    fakes: dict[Tensor, Tensor] = {}
    try:
        for tensors, name, tensor in places:
            if tensor not in fakes:
                fakes[tensor] = _fake_of(tensor)
            tensors[name] = fakes[tensor]
        yield
    finally:
        for tensors, name, tensor in places:
            tensors[name] = tensor


def _fake_of(tensor: Tensor) -> Tensor:
    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    if not isinstance(tensor, nn.Parameter):
        return fake
    parameter: Any = nn.Parameter(fake, requires_grad=tensor.requires_grad)
    state: Any = getattr(tensor, "quant_state", None)  # of bitsandbytes' 4-bit weights
    if state is not None:
        parameter.quant_state = _fake_state_of(state)
    return parameter


def _fake_state_of(state: Any) -> Any:
    if state is None:
        return None
    twin = copy.copy(state)
    for name in ("absmax", "code", "offset"):
        of_state = getattr(state, name)
        if of_state is not None:
            setattr(twin, name, torch.empty(of_state.shape, dtype=of_state.dtype, device="cpu"))
    twin.state2 = _fake_state_of(state.state2)
    return twin
