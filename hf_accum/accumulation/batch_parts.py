"""Anybody's batch: nested dicts, tuples and dataclasses of tensors, whose rows are the examples."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from hf_accum.errors import UserError, shown

B = TypeVar("B")


def map_leaves(
    batch: Any,
    change: Callable[[str, Any], Any],
    name: str = "",
    of_list: Callable[[str, list[Any]], Any] = lambda name, values: None,
) -> Any:
    """The same batch with every leaf changed by `change(name, leaf)`. The name is the way to it: "inputs.input_ids".

    Containers are mappings (`BatchEncoding` too), tuples, named tuples, lists that hold tensors or containers, and
    dataclasses; each stays of its type. What `of_list(name, values)` makes of such a list stands for it, if anything.
    """

    def inner(key: object, value: Any) -> Any:
        return map_leaves(value, change, f"{name}.{key}" if name else str(key), of_list)

    if isinstance(batch, Mapping):
        changed = {key: inner(key, value) for key, value in batch.items()}
        if type(batch) is dict:
            return changed
        return type(batch)(**changed) if dataclasses.is_dataclass(batch) else type(batch)(changed)  # type: ignore[call-arg]
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        fields = [field.name for field in dataclasses.fields(batch) if field.init]
        return dataclasses.replace(batch, **{key: inner(key, getattr(batch, key)) for key in fields})
    if isinstance(batch, tuple):
        changed = [inner(key, value) for key, value in _keyed(batch)]
        return type(batch)(*changed) if hasattr(batch, "_fields") else tuple(changed)
    if isinstance(batch, list) and _is_container(batch):
        made = of_list(name, batch)
        return made if made is not None else [inner(index, value) for index, value in enumerate(batch)]
    return change(name, batch)


def _keyed(values: Sequence[Any]) -> Iterable[tuple[object, Any]]:
    """What is in a tuple or list, by its field or its place."""
    return zip(getattr(values, "_fields", range(len(values))), values, strict=True)


def _is_container(value: object) -> bool:
    if isinstance(value, list):
        return any(isinstance(inner, Tensor) or _is_container(inner) for inner in value)
    return isinstance(value, (Mapping, tuple)) or (dataclasses.is_dataclass(value) and not isinstance(value, type))


def map_tensors(batch: B, change: Callable[[str, Tensor], Tensor]) -> B:
    """The same batch with every tensor changed by `change(name, tensor)`; all else stays as it is."""
    return map_leaves(batch, lambda name, leaf: change(name, leaf) if isinstance(leaf, Tensor) else leaf)


def leaves(value: Any, in_lists: bool = True, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Each tensor of a batch and the way to it, as `map_leaves` names it: "inputs.input_ids". Nothing is made anew,
    so that it may be what a function was given, or returned. Those in lists within the batch too.
    """
    if isinstance(value, Tensor):
        yield name, value
        return
    if isinstance(value, Mapping):
        inner: Iterable[tuple[object, Any]] = value.items()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value) if field.init)
    elif isinstance(value, tuple) or (isinstance(value, list) and (in_lists or not name)):
        inner = _keyed(value)
    else:
        return
    for key, of in inner:
        yield from leaves(of, in_lists, f"{name}.{key}" if name else str(key))


def last_key(name: str) -> str:
    """What holds a tensor, of the way to it: `input_ids` of "inputs.input_ids"."""
    return name.rpartition(".")[2]


def num_rows(batch: Any) -> int:
    """How many examples a batch has: the first dimension of its first tensor that has one, outside of lists
    within it (which may be of images, say) where there is such a one.

    Raises:
        UserError: if it has no such tensor, or no row.
    """
    for name, tensor in (*leaves(batch, in_lists=False), *leaves(batch)):
        if tensor.ndim:
            if len(tensor) == 0:
                raise UserError(f"a batch without examples: `{name}` has the shape {tuple(tensor.shape)}")
            return len(tensor)
    raise UserError(
        f"a batch of the type {type(batch).__name__} without tensors: has to be a dict, tuple or dataclass of "
        "tensors whose first dimension is the examples"
    )


def weight_of(batch: Any, weight: Callable[[Any], float | Tensor], which: str = "a batch") -> float:
    """What a batch weighs by somebody's function; `which` is the batch in messages.

    Raises:
        UserError: if the function gives anything but one number from 0 on.
    """
    found = weight(batch)
    given = f"of the shape {tuple(found.shape)}" if isinstance(found, Tensor) and found.ndim else shown(found)
    rule = f"the weight of {which} is {given}: has to be a number from 0 on"
    if isinstance(found, Tensor) and found.numel() != 1:
        raise UserError(f"{rule}; add it up: `.sum()`")
    try:
        number = float(found)
    except (TypeError, ValueError) as error:
        way_out = "; the function has to return it" if found is None else ""
        raise UserError(f"{rule}, all its items together{way_out}") from error
    if not 0 <= number < float("inf"):
        raise UserError(f"the weight of {which} is {number}: has to be a number from 0 on")
    return number


def row_length(batch: Any) -> int:
    """The length of the rows of a batch: `input_ids`, or the first tensor of integers that has it, by its second
    dimension; 1 where there is none.
    """
    tensors = list(leaves(batch))
    named = [tensor for name, tensor in tensors if last_key(name) == "input_ids"]
    others = [tensor for _, tensor in tensors if not tensor.is_floating_point()]
    return next((tensor.shape[1] for tensor in (*named, *others) if tensor.ndim > 1), 1)


def has_rows(name: str, values: list[Any], count: int) -> bool:
    """Whether a list of tensors or containers, within a batch of `count` examples, has something for each of them.

    Raises:
        UserError: if that cannot be told, as its tensors may be what has something for each.
    """
    if not name or len(values) != count:
        return False
    inner = [tensor for _, tensor in leaves(values) if tensor.ndim]
    if inner and all(tensor.shape[0] == count for tensor in inner):
        raise UserError(
            f"`{name}` of a batch is a list of {count} in which each tensor has {count} rows, as many as the batch "
            "has: it cannot be told which of the two are its examples; make it a tensor or a tuple, or give batches "
            "that fit whole"
        )
    return True


def rows_of(batch: B, start: int, stop: int) -> B:
    """Some rows of a batch, as a batch of its type: views of its tensors, and slices of its lists.

    A list within the batch that has something for each row (the boxes of each image) is cut as a list.

    Raises:
        UserError: if a tensor has another number of rows, is sparse or nested, or is in a list of which it cannot be
            told whether it is cut or its tensors are.
    """
    count = num_rows(batch)
    if start == 0 and stop >= count:
        return batch

    def cut(name: str, leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.ndim:
            if leaf.layout != torch.strided:
                raise UserError(
                    f"`{name}` of a batch is a tensor of the layout {leaf.layout}, which cannot be cut: give batches "
                    "that fit whole, or a dense one"
                )
            if len(leaf) != count:
                raise UserError(
                    f"`{name}` of a batch has the shape {tuple(leaf.shape)}: has to have {count} rows, as the first "
                    "tensor has, for the batch to be cut; give batches that fit whole, or keep it out of them"
                )
            return leaf[start:stop]
        if isinstance(leaf, Sequence) and not isinstance(leaf, (str, bytes)) and len(leaf) == count:
            return leaf[start:stop]
        return leaf

    return map_leaves(
        batch, cut, of_list=lambda name, values: values[start:stop] if has_rows(name, values, count) else None
    )


def first_row(batch: B) -> B:
    """A copy of the first row of a batch, as a batch of its type; of all of it, where it cannot be cut."""
    try:
        part = rows_of(batch, 0, 1)
    except UserError:
        part = batch
    return map_tensors(part, lambda _, tensor: tensor.clone())


def to_device(batch: B, device: torch.device) -> B:
    """All tensors of a batch on a device; from pinned memory without waiting for it."""
    return map_tensors(batch, lambda _, tensor: tensor.to(device, non_blocking=True))
