"""Examples of which batches are made anew: any of them, in any order, with more padding or less."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hf_accum.accumulation.batch_parts import last_key, leaves, map_tensors, weight_of
from hf_accum.accumulation.losses import IGNORE
from hf_accum.errors import UserError

_SEQUENCES = ("input_ids", "attention_mask", "decoder_input_ids", "input_values")
"""What says how long a text or a sound is, by the names of transformers; the first that is there does."""


class Rows(Protocol):
    """Examples, all of which make the one unsplit batch."""

    num_examples: int
    cannot_pad: str
    """Why no padding is added, or ''."""
    is_left: bool
    """Padding is on the left."""
    room: int
    """How many positions of padding can be added."""

    def batch(self, places: Sequence[int]) -> Any:
        """Of the examples at these places, which may come twice, padded as the unsplit batch is."""
        ...

    def padded(self, extra: int) -> Any:
        """The unsplit batch, with so many more positions of padding."""
        ...

    def alone(self, place: int) -> Any:
        """A batch of one example, without any padding."""
        ...

    def real(self) -> Tensor:
        """Where the unsplit batch has no padding: (num_texts, length), bool; an example may have several texts."""
        ...

    @property
    def lengths(self) -> list[int]:
        """Of each example, without padding."""
        ...

    def weight(self, batch: Any) -> float:
        """What the batch weighs."""
        ...

    def counts(self, batch: Any) -> dict[str, float]:
        """What a mean over a batch may divide by, by what it is."""
        ...

    def short(self) -> Iterator[tuple[str, Any]]:
        """Batches of one example that is as short as can be, and what they are."""
        ...


class TensorRows:
    """The examples of batches of tensors, along the first dimension of each.

    Batches of different lengths are padded to the longest: with what padding holds in them, by their mask; else
    labels with -100, `input_ids` with `pad_token_id`, all else with 0. `weight` gives the weight of a batch; None:
    the labels that count, or the examples. A model that takes no mask (`has_mask` False) knows its padding by
    `pad_token_id`. `most_positions`: as many as the model has.

    Raises:
        UserError: if the batches hold no tensors, or cannot be one batch.
    """

    def __init__(
        self,
        batches: Sequence[Any],
        weight: Callable[[Any], float | Tensor] | None = None,
        pad_token_id: int | None = None,
        most_positions: int | None = None,
        *,
        has_mask: bool = True,
    ) -> None:
        if isinstance(batches, Mapping | Tensor) or not isinstance(batches, Sequence) or not batches:
            raise UserError(
                f"`batches` of the type {type(batches).__name__}: has to be a list of at least one batch; put a "
                "single one into a list"
            )
        self._own_weight = weight
        self.whole = self._joined(batches, pad_token_id)
        named = list(leaves(self.whole))
        self._labels = {name for name, tensor in named if counts_nothing(name, tensor)}
        self.num_examples = len(named[0][1])
        if self.num_examples < 4:
            raise UserError(f"{self.num_examples} examples: have to be at least 4, of which cuts can be made")
        by_name = {last_key(name): tensor for name, tensor in named}
        self._length = next((by_name[name].shape[-1] for name in _SEQUENCES if name in by_name), None)
        mask = by_name.get("attention_mask")
        self._mask = mask if mask is not None and mask.shape[-1] == self._length and mask.dim() >= 2 else None
        if mask is None and not has_mask and pad_token_id is not None and "input_ids" in by_name:
            self._mask = (by_name["input_ids"] != pad_token_id).long()
        self.is_left = self._mask is not None and bool((self._mask[..., 0] == 0).any())
        self.cannot_pad = self._why_not_padded()
        self.room = 0
        if not self.cannot_pad and self._length is not None:
            self.room = 7 if most_positions is None else max(0, min(7, most_positions - self._length))
        self._pad = pad_token_id

    def _why_not_padded(self) -> str:
        if self._length is None:
            return "the batches have no `input_ids`, `attention_mask` or `input_values`"
        if self._mask is None:
            return "the batches have no `attention_mask`, by which a model knows its padding"
        return ""

    def _joined(self, batches: Sequence[Any], pad_token_id: int | None) -> Any:
        batches = _with_masks(batches)
        self._padding = _padding_values(batches)
        sizes = []
        for batch in batches:
            _refuse_lists(batch)
            found = [tensor for _, tensor in leaves(batch) if tensor.dim()]
            if not found:
                raise UserError(
                    f"a batch of the type {type(batch).__name__} without tensors: has to be a mapping, tuple or "
                    "dataclass of tensors with the examples along the first dimension"
                )
            sizes.append(len(found[0]))
            others = {len(tensor) for tensor in found} - {sizes[-1]}
            if others:
                raise UserError(
                    f"a batch with tensors of {sizes[-1]} and of {', '.join(map(str, sorted(others)))} rows: has to "
                    "have the examples along the first dimension of each"
                )

        by_name = [dict(leaves(batch)) for batch in batches]
        others = {name for names in by_name for name in names.keys() ^ by_name[0].keys()}
        if others:
            raise UserError(
                f"batches that hold different tensors: {', '.join(sorted(others))} of some and not of others; cannot "
                "be one batch"
            )

        def join(name: str, _: Tensor) -> Tensor:
            tensors = [tensor_of[name] for tensor_of in by_name]
            if not tensors[0].dim():
                return tensors[0]
            if len({tensor.dim() for tensor in tensors}) > 1:
                raise UserError(f"batches whose {name!r} have different numbers of dimensions: cannot be one batch")
            longest = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
            ignored = any(counts_nothing(name, tensor) for tensor in tensors) and tensors[0].dim() > 1
            usual = IGNORE if ignored else (pad_token_id or 0) if last_key(name) == "input_ids" else 0
            fill = self._padding.get(name, usual)
            return torch.cat([_filled(tensor.detach(), longest, fill) for tensor in tensors])

        return map_tensors(batches[0], join)

    def batch(self, places: Sequence[int]) -> Any:
        """See `Rows`."""
        return self._of(self.whole, list(places))

    @staticmethod
    def _of(batch: Any, places: list[int]) -> Any:
        return map_tensors(batch, lambda _, tensor: tensor[places] if tensor.dim() else tensor)

    def padded(self, extra: int) -> Any:
        """See `Rows`."""

        def pad(name: str, tensor: Tensor) -> Tensor:
            if not self._has_positions(name, tensor):
                return tensor
            is_ids = last_key(name) == "input_ids"
            usual = IGNORE if name in self._labels else (self._pad or 0) if is_ids else 0
            fill = self._padding.get(name, usual)
            more = tensor.new_full((*tensor.shape[:-1], extra), fill)
            return torch.cat([more, tensor] if self.is_left else [tensor, more], -1)

        return map_tensors(self.whole, pad)

    def alone(self, place: int) -> Any:
        """See `Rows`."""
        if self._mask is None:
            return self.batch([place])
        return self._cut([place], self.lengths[place])

    def _cut(self, places: list[int], length: int) -> Any:
        def cut(name: str, tensor: Tensor) -> Tensor:
            if not self._has_positions(name, tensor):
                return tensor
            return tensor[..., -length:] if self.is_left else tensor[..., :length]

        return map_tensors(self._of(self.whole, places), cut)

    def real(self) -> Tensor:
        """See `Rows`."""
        assert self._mask is not None
        return self._mask.reshape(-1, self._mask.shape[-1]) != 0

    @property
    def lengths(self) -> list[int]:
        """See `Rows`."""
        assert self._mask is not None
        sums = (self._mask != 0).sum(-1)
        return [int(of.max()) for of in sums]

    def weight(self, batch: Any) -> float:
        """See `Rows`."""
        if self._own_weight is not None:
            with torch.no_grad():
                return weight_of(batch, self._own_weight)
        named = [(name, tensor) for name, tensor in leaves(batch) if tensor.dim()]
        labels = next(((name, tensor) for name, tensor in named if name in self._labels), None)
        return float(len(named[0][1]) if labels is None else self._counted(*labels))

    def _counted(self, name: str, labels: Tensor) -> int:
        """Of some labels those that are neither -100 nor what padding holds."""
        return int(((labels != IGNORE) & (labels != self._padding.get(name, IGNORE))).sum())

    def counts(self, batch: Any) -> dict[str, float]:
        """See `Rows`."""
        named = [(name, tensor) for name, tensor in leaves(batch) if tensor.dim()]
        found = {"examples": float(len(named[0][1]))}
        for name, tensor in named:
            if name in self._labels and tensor.dim() > 1:
                found[f"{name} that count"] = float(self._counted(name, tensor))
                found[f"{name} that count, but the first"] = float(self._counted(name, tensor[..., 1:]))
                found[f"{name} that are not 255"] = float((tensor != 255).sum())
        masks = {name: tensor for name, tensor in named if "mask" in last_key(name) and tensor.dim() > 1}
        return found | {f"positions of {name}": float((tensor != 0).sum()) for name, tensor in masks.items()}

    def short(self) -> Iterator[tuple[str, Any]]:
        """See `Rows`."""
        shortest = 0
        if self._mask is not None:
            shortest = int(self._mask.flatten(1).sum(1).argmin())
        if self._length is not None and not self.cannot_pad:
            for length in (1, 2):
                yield f"a text of {length} position{'s'[: length - 1]}", _clamped(self._cut([shortest], length))
        batch = self.batch([shortest])
        ignored = [name for name, tensor in leaves(batch) if tensor.dim() > 1 and name in self._labels]
        if ignored:

            def without(name: str, tensor: Tensor) -> Tensor:
                counts = name not in ignored
                return tensor if counts else torch.full_like(tensor, self._padding.get(name, IGNORE))

            yield "a text of which no label counts", map_tensors(batch, without)

    def _has_positions(self, name: str, tensor: Tensor) -> bool:
        is_of_tokens = self._mask is not None and tensor.shape[1:] == self._mask.shape[1:]  # also weights of tokens
        known = not tensor.is_floating_point() or last_key(name) in _SEQUENCES or is_of_tokens
        return known and tensor.dim() >= 2 and tensor.shape[-1] == self._length


def counts_nothing(name: str, tensor: Tensor) -> bool:
    """Whether -100 stands for no label in it: labels, by their name or because it is in there."""
    if tensor.is_floating_point() or tensor.is_complex():
        return False
    key = last_key(name)
    return "label" in key or "target" in key or "tags" in key or bool((tensor == IGNORE).any())


def _padding_values(batches: Sequence[Any]) -> dict[str, float]:
    """What padding holds in the tensors that have the shape of `attention_mask`, by their names, where it is one."""
    found: dict[str, set[float]] = {}
    for batch in batches:
        named = dict(leaves(batch))
        mask = next((tensor for name, tensor in named.items() if last_key(name) == "attention_mask"), None)
        if mask is None or mask.dim() < 2:
            continue
        for name, tensor in named.items():
            if tensor.shape == mask.shape:
                found.setdefault(name, set()).update(tensor[mask == 0].unique().tolist())
    return {name: next(iter(values)) for name, values in found.items() if len(values) == 1}


def _refuse_lists(batch: Any) -> None:
    """Values of a mapping that belong to its examples, of which none can be taken: they are no tensors."""
    for name, value in batch.items() if isinstance(batch, Mapping) else ():
        is_of_numbers = isinstance(value, list) and value and all(isinstance(one, int | float) for one in value)
        if is_of_numbers or isinstance(value, np.ndarray):
            raise UserError(
                f"a batch with {name!r} of the type {type(value).__name__}: numbers have to be a tensor, of which "
                "the examples can be taken"
            )


def _filled(tensor: Tensor, sizes: Sequence[int], fill: float) -> Tensor:
    if list(tensor.shape[1:]) == list(sizes):
        return tensor
    whole = tensor.new_full((len(tensor), *sizes), fill)
    whole[tuple(slice(size) for size in tensor.shape)] = tensor
    return whole


def _with_masks(batches: Sequence[Any]) -> list[Any]:
    """The same with an `attention_mask` in each mapping of token ids, where lengths differ or one has a mask."""
    mappings = [batch for batch in batches if isinstance(batch, Mapping) and "input_ids" in batch]
    if len(mappings) < len(batches):
        inner = [
            batch[0] for batch in batches if isinstance(batch, tuple) and batch and isinstance(batch[0], Mapping)
        ]
        if len(inner) < len(batches) or any("input_ids" not in part for part in inner):
            return list(batches)
        masked = _with_masks(inner)
        return [(one, *batch[1:]) for one, batch in zip(masked, batches, strict=True)]
    differ = len({batch["input_ids"].shape[-1] for batch in mappings}) > 1
    if not differ and not any("attention_mask" in batch for batch in mappings):
        return list(batches)
    return [
        batch
        if "attention_mask" in batch
        else type(batch)({**batch, "attention_mask": torch.ones_like(batch["input_ids"])})  # type: ignore[call-arg]
        for batch in mappings
    ]


def _clamped(batch: Any) -> Any:
    """Answers (`start_positions`) lie in the text that is left."""
    return map_tensors(batch, lambda name, tensor: tensor * 0 if name.endswith("_positions") else tensor)
