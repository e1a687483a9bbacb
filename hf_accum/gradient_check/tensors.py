"""The tensors in a batch, whatever holds them: mappings, tuples, lists, dataclasses."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

IGNORE = -100


def leaves(batch: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Each tensor and what holds it by: the innermost key, field or place."""
    if isinstance(batch, Tensor):
        yield name, batch
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from leaves(value, str(key))
    elif dataclasses.is_dataclass(batch):
        for field in dataclasses.fields(batch):
            yield from leaves(getattr(batch, field.name), field.name)
    elif isinstance(batch, tuple) and hasattr(batch, "_fields"):
        for field, value in zip(batch._fields, batch, strict=True):  # type: ignore[attr-defined]
            yield from leaves(value, field)
    elif isinstance(batch, list | tuple):
        for place, value in enumerate(batch):
            yield from leaves(value, str(place))


def mapped(batches: Sequence[Any], change: Callable[[str, list[Tensor]], Tensor], name: str = "") -> Any:
    """A batch of the same make as the first, with what `change` makes of the tensors at each place in all of them.

    What is no tensor is that of the first.
    """
    first = batches[0]
    if isinstance(first, Tensor):
        return change(name, list(batches))
    if isinstance(first, Mapping):
        values = {key: mapped([batch[key] for batch in batches], change, str(key)) for key in first}
        return values if type(first) is dict else type(first)(values)  # type: ignore[call-arg]
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        names = [field.name for field in dataclasses.fields(first) if field.init]
        values = {name: mapped([getattr(batch, name) for batch in batches], change, name) for name in names}
        return dataclasses.replace(first, **values)
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        fields: Sequence[str] = first._fields  # type: ignore[attr-defined]
        return type(first)(*(mapped([getattr(b, field) for b in batches], change, field) for field in fields))
    if isinstance(first, list | tuple):
        return type(first)(mapped([b[place] for b in batches], change, str(place)) for place in range(len(first)))
    return first


def counts_nothing(name: str, tensor: Tensor) -> bool:
    """Whether -100 stands for no label in it: labels, by their name or because it is in there."""
    if tensor.is_floating_point() or tensor.is_complex():
        return False
    return "label" in name or "target" in name or "tags" in name or bool((tensor == IGNORE).any())
