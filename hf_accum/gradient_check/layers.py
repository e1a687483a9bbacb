"""The first layer in which two forwards differ."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

_MOST_BYTES = 256 * 2**20
"""Of outputs that are kept to be compared: what differs does so early, or is found in a short text."""


@dataclass(frozen=True)
class Layer:
    """A module by its name in the model."""

    name: str
    kind: str

    @staticmethod
    def of(name: str, module: nn.Module) -> "Layer":
        """A module as a layer."""
        return Layer(name, type(module).__name__)

    def __str__(self) -> str:
        return f"layer {self.name} ({self.kind})"


def first_difference(
    model: nn.Module,
    one: Callable[[], object],
    other: Callable[[], object],
    between: Callable[[], object] = lambda: None,
) -> Layer | None:
    """The first layer whose outputs are not the same in two forwards; None: there is none, or not within the first.

    A difference that does not come out of a module around the layer is none: of positions that are counted from the
    longest text, say, and that are read from one's own on.

    `between` is run between the two, and not watched.

    Calls of one layer are compared in turn, and one that only `other` has is a difference: attention in blocks has
    more of them in a longer text, and comes to the same, and BigBird's goes another way.

    Where `other` has more examples, or longer ones, the first values of each dimension are compared: those of the
    same tokens. What differs by no more than roundings do is the same.
    """
    kept: dict[tuple[str, int], list[Tensor] | None] = {}
    num_bytes, calls_of_one = 0, Counter[str]()

    def keep(name: str, module: nn.Module, outputs: list[Tensor]) -> None:
        nonlocal num_bytes
        num_bytes += sum(output.nbytes for output in outputs)
        copies = [output.detach().to("cpu", copy=True) for output in outputs]  # it may be changed
        kept[name, calls_of_one[name]] = copies if num_bytes <= _MOST_BYTES else None
        calls_of_one[name] += 1

    with torch.no_grad(), _watching(model, keep):
        one()
    with torch.no_grad():
        between()
    calls: list[tuple[str, nn.Module, bool | None]] = []  # and whether it was the same, if that can be said
    calls_of_other = Counter[str]()

    def compare(name: str, module: nn.Module, outputs: list[Tensor]) -> None:
        call = name, calls_of_other[name]
        is_same = None if call in kept else False
        if (of_one := kept.get(call)) is not None:
            is_same = _are_same(of_one, [output.detach().cpu() for output in outputs])
        calls.append((name, module, is_same))
        calls_of_other[name] += 1

    with torch.no_grad(), _watching(model, compare):
        other()
    for index, (name, module, is_same) in enumerate(calls):
        if is_same is False and not _ends_within(name, calls[index + 1 :]):
            return Layer.of(name, module)
    return None


def _ends_within(name: str, later: Sequence[tuple[str, nn.Module, bool | None]]) -> bool:
    """Whether the outputs of a module around this one are the same."""
    seen: set[str] = set()
    for outer, _, is_same in later:
        if name.startswith(f"{outer}.") and outer not in seen:
            seen.add(outer)
            if is_same:
                return True
    return False


def _are_same(of_one: Sequence[Tensor], of_other: Sequence[Tensor]) -> bool | None:
    said = [same for same in map(_is_close, of_one, of_other) if same is not None]
    return all(said) if said else None


def _is_close(one: Tensor, other: Tensor) -> bool | None:
    """None: nothing can be said."""
    if one.ndim != other.ndim or not one.is_floating_point():
        return None
    for dim, size in enumerate(one.shape):
        if other.shape[dim] < size:
            return None
        other = other.narrow(dim, 0, size)
    rounding = 100 * torch.finfo(one.dtype).eps ** 0.9
    scale = float(one.abs().max()) if one.numel() else 0.0
    difference = float((one.float() - other.float()).abs().max()) if one.numel() else 0.0
    return difference <= min(0.05, rounding) * scale


@contextmanager
def _watching(model: nn.Module, see: Callable[[str, nn.Module, list[Tensor]], None]) -> Iterator[None]:
    """Inner layers come before those that they are in."""

    def hook_of(name: str) -> Any:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            see(name, module, [leaf for leaf in tree_leaves(_plain(output)) if isinstance(leaf, Tensor)])

        return hook

    handles = [module.register_forward_hook(hook_of(name)) for name, module in model.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _plain(output: Any) -> Any:
    """transformers' outputs are ordered dictionaries of a kind of their own."""
    return dict(output) if hasattr(output, "keys") else output


@contextmanager
def rounded_otherwise(model: nn.Module, generator: torch.Generator) -> Iterator[None]:
    """Inside each layer's outputs are moved by one unit in the last place of their type, up or down at random.

    So much, at most, does another order of the same sums change. On CUDA float32 may be multiplied as TF32, of 10
    bits.
    """

    def hook(module: nn.Module, _: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        signs = torch.randint(0, 2, output.shape, generator=generator).mul_(2).sub_(1).to(output.device)
        eps = torch.finfo(output.dtype).eps
        if output.device.type == "cuda" and (
            torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
        ):
            eps = max(eps, 2.0**-10)
        return output + output.detach() * (signs * eps).to(output.dtype)

    leaves = [module for module in model.modules() if not list(module.children())]
    handles = [module.register_forward_hook(hook) for module in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
