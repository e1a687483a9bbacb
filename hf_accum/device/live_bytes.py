"""Bytes of live tensors, counted as operations make and free them; with a budget a small virtual device."""

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """While it is active: the bytes of all tensors that operations make and that are alive, and their peak.

    With a `budget_bytes` it is a small device of its own: an operation whose result goes over it raises
    torch.OutOfMemoryError. `held` tensors, which were there before, count from the start.

    What a kernel allocates and frees within itself is not seen. `record(number, num_bytes)` is told of each storage
    by a number of its own: once it is there, and with its bytes negative once it is gone; not of empty ones. Of each
    moment of the timeline it is told by (-1, 0).
    """

    def __init__(
        self,
        budget_bytes: int | None = None,
        held: Iterable[Tensor] = (),
        record: Callable[[int, int], object] | None = None,
    ) -> None:
        super().__init__()
        self._record = record
        self._num_storages = 0
        self.budget_bytes = budget_bytes
        self.current_bytes = 0
        self.peak_bytes = 0
        self.timeline: list[int] = []
        """Bytes after each operation that made new ones."""
        self._storages: dict[int, _Counted] = {}
        for tensor in held:
            self._count(tensor)
        self.peak_bytes = self.current_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        before = self.current_bytes
        self._count_all(result)
        if self.current_bytes > before:
            if self.budget_bytes is not None and self.current_bytes > self.budget_bytes:
                needed = self.current_bytes
                del result  # the frame outlives the error
                raise torch.OutOfMemoryError(
                    f"virtual device out of memory. {func} needs {needed:,} bytes in all, of {self.budget_bytes:,}"
                )
            self.timeline.append(self.current_bytes)
            if self._record is not None:
                self._record(-1, 0)
            self.peak_bytes = max(self.peak_bytes, self.current_bytes)
        return result

    def leave_out(self, tensors: Iterable[Tensor]) -> None:
        """Count these no more from here on: they stay alive, and are elsewhere."""
        for key in dict.fromkeys(tensor.untyped_storage()._cdata for tensor in tensors):
            storage = self._storages.get(key)
            if storage is not None:
                self.peak_bytes -= storage.num_bytes
                self._leaves(storage)

    def _count_all(self, result: Any) -> None:
        for leaf in tree_iter(result):
            if isinstance(leaf, Tensor) and leaf.device.type != "meta":  # which has no memory
                self._count(leaf)

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return
        counted = _Counted(self._num_storages, storage.nbytes())
        self._num_storages += 1

        def freed(_: object) -> None:
            self._leaves(self._storages.pop(key))

        counted.reference = weakref.ref(storage, freed)
        self._storages[key] = counted
        self.current_bytes += counted.num_bytes
        if self._record is not None and counted.num_bytes:
            self._record(counted.number, counted.num_bytes)

    def _leaves(self, storage: "_Counted") -> None:
        num_bytes, storage.num_bytes = storage.num_bytes, 0
        self.current_bytes -= num_bytes
        if self._record is not None and num_bytes:
            self._record(storage.number, -num_bytes)


@dataclass
class _Counted:
    """A storage that is alive; of one that is left out no bytes count."""

    number: int
    num_bytes: int
    reference: "weakref.ref[torch.UntypedStorage] | None" = None


def tensors_of(model: nn.Module) -> list[Tensor]:
    """Parameters, buffers, and what belongs to quantised weights."""
    of_weights = [t for p in model.parameters() for t in _of_state(getattr(p, "quant_state", None))]
    return [*model.parameters(), *model.buffers(), *of_weights]


def _of_state(state: Any) -> list[Tensor]:
    """Of quantised weights: their scales and codes, and those of the scales (double quantisation)."""
    if state is None:
        return []
    offset = [] if state.offset is None else [state.offset]
    return [state.absmax, state.code, *offset, *_of_state(state.state2)]


def sum_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors' storages, each counted once."""
    storages = {s._cdata: s.nbytes() for s in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storages.values())
