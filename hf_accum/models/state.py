"""What forwards may leave in a model, kept."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_OF_TORCH = frozenset(nn.Module().__dict__) - {"training"}
"""Attributes that torch's own modules have: parameters, hooks."""
_HOOKS = tuple(name for name in _OF_TORCH if "hooks" in name and isinstance(vars(nn.Module())[name], dict))


@contextmanager
def keeping_state(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Afterwards gradients, buffers, train or eval mode and other attributes of modules are as they were.

    Also where a forward put another buffer in a buffer's place, as rotary embeddings do whose frequencies depend on
    the length, or another module in a module's, as BigBird does at a short text; or has put hooks on modules, as
    transformers does to record their outputs. Parameters are not kept: no forward changes them. Inside, the function
    that it gives does the same.
    """
    gradients = [(p, p.grad) for p in model.parameters()]
    states = [_ModuleState(module) for module in model.modules()]

    @torch.no_grad()
    def put_back() -> None:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for state in states:
            state.put_back()

    try:
        yield put_back
    finally:
        put_back()


class _ModuleState:
    """What a module has: modules, buffers, plain attributes, and the values of those that change in their place."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._modules, self._buffers = dict(module._modules), dict(module._buffers)
        self._attributes = {name: value for name, value in vars(module).items() if name not in _OF_TORCH}
        self._hooks = {name: vars(module)[name].copy() for name in _HOOKS}
        values = [*self._buffers.values(), *self._attributes.values()]
        self._copies = [(value, copied) for value in values if (copied := _copied(value)) is not None]

    def put_back(self) -> None:
        module = self._module
        for name in [name for name in vars(module) if name not in _OF_TORCH and name not in self._attributes]:
            del vars(module)[name]
        vars(module).update(self._attributes)
        for name, hooks in self._hooks.items():
            vars(module)[name].clear()
            vars(module)[name].update(hooks)
        module._modules.clear()
        module._modules.update(self._modules)
        module._buffers.clear()
        module._buffers.update(self._buffers)
        for value, copied in self._copies:
            if isinstance(value, Tensor):
                with torch.inference_mode(value.is_inference()):  # what was made in that mode changes in it only
                    value.copy_(copied)
            elif isinstance(value, list):
                value[:] = copied
            else:
                value.clear()
                value.update(copied)


def _copied(value: Any) -> Any:
    """Of what can change in its place its value now; else None."""
    if isinstance(value, nn.Parameter):
        return None
    if isinstance(value, Tensor):
        return value.detach().clone()
    return value.copy() if type(value) in (list, dict) else None
