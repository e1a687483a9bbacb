"""Where two forwards of a model part: the first of its modules, in the order of calls, that gives another result."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_accum.accumulation.batch_parts import leaves
from hf_accum.gradient_check.probe import Probe

Align = Callable[[Tensor, Tensor], tuple[Tensor, Tensor] | None]
"""Of two tensors of the same place in two forwards the parts that have to be the same; None: cannot be compared."""


@dataclass(frozen=True)
class Call:
    """A call of a module: what went in, what came out."""

    name: str
    inputs: list[Tensor]
    outputs: list[Tensor]


def calls_of(probe: Probe, batch: Any, seed: int | None = None) -> list[Call]:
    """The calls of all modules in one forward, each after those inside it."""
    calls: list[Call] = []

    begun: list[list[Tensor]] = []

    def begin(module: Any, args: Any, kwargs: Any) -> None:  # a module may write into its inputs
        begun.append([tensor.detach().clone() for _, tensor in leaves([args, kwargs])])

    def hook(name: str) -> Any:
        def note(module: Any, args: Any, output: Any) -> None:
            calls.append(Call(name, begun.pop(), [tensor.detach().clone() for _, tensor in leaves([output])]))

        return note

    handles = []
    for name, module in probe.model.named_modules():
        handles += [
            module.register_forward_pre_hook(begin, with_kwargs=True),
            module.register_forward_hook(hook(name)),
        ]
    try:
        probe.loss(batch, seed)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def as_they_are(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor] | None:
    """Tensors of two forwards of one batch."""
    return (first, second) if first.shape == second.shape else None


def first_difference(one: list[Call], other: list[Call], tolerance: float, align: Align = as_they_are) -> str | None:
    """The first module that gives another result of the same inputs; None: none does.

    The calls of each module are compared in their order. A module that is left out in one of the forwards has none.
    """
    left: dict[str, list[Call]] = {}
    for call in reversed(other):
        left.setdefault(call.name, []).append(call)
    for first in one:
        if not left.get(first.name):
            continue
        second = left[first.name].pop()
        if _differ(first.outputs, second.outputs, tolerance, align) and not _differ(
            first.inputs, second.inputs, tolerance, align
        ):
            return first.name
    return None


def _differ(one: list[Tensor], other: list[Tensor], tolerance: float, align: Align) -> bool:
    for first, second in zip(one, other, strict=False):
        aligned = align(first, second)
        if aligned is None:
            continue
        a, b = (tensor.double().nan_to_num(neginf=0.0, posinf=0.0) for tensor in aligned)
        if a.numel() and float((a - b).abs().max()) > tolerance * max(1e-12, float(a.abs().max())):
            return True
    return False


def by_example(first: int, num_examples: int, size: int = 1) -> Align:
    """Of a forward of all examples the part of `size` of them from the first on, and the forward of these."""

    def align(whole: Tensor, few: Tensor) -> tuple[Tensor, Tensor] | None:
        if not whole.dim() or not few.dim() or len(few) * num_examples != len(whole) * size:
            return None
        rows = len(few) // size
        part = whole[first * rows : (first + size) * rows]
        return (part, few) if part.shape == few.shape else None

    return align


def by_position(real: Tensor, extra: int, is_left: bool) -> Align:
    """Of a forward, and of one with `extra` more positions of padding, the real positions; (num_texts, length)."""
    length = real.shape[1]

    def align(short: Tensor, long: Tensor) -> tuple[Tensor, Tensor] | None:
        if short.shape == long.shape:
            return (short, long) if short.dim() < 2 or short.shape[1] != length else None
        dims = [dim for dim in range(short.dim()) if short.shape[dim] != long.shape[dim]]
        if short.dim() != long.dim() or any(long.shape[dim] != length + extra for dim in dims):
            return None
        if dims != [1] or short.shape[:2] != real.shape:
            return None
        start = extra if is_left else 0
        return short[real], long.narrow(1, start, length)[real]

    return align


def kind_of(probe: Probe, name: str) -> str:
    """A module for a message: its name and its class."""
    if name == "":
        return type(probe.model).__name__
    return f"{name} ({type(probe.model.get_submodule(name)).__name__})"


def class_of(probe: Probe, name: str) -> type[torch.nn.Module]:
    """The class of a module."""
    return type(probe.model.get_submodule(name))
