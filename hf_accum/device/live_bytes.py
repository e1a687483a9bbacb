"""Bytes of live tensors, counted as operations make and free them; with a budget a small virtual device."""

import weakref
from collections.abc import Callable, Iterable
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
    by a number of its own: once it is there, and with its bytes negative once it is gone; not of empty ones.
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
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}
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
            self.peak_bytes = max(self.peak_bytes, self.current_bytes)
        return result

    def leave_out(self, num_bytes: int) -> None:
        """Count so many bytes less from here on: of tensors that stay alive, and are elsewhere."""
        self.current_bytes -= num_bytes
        self.peak_bytes -= num_bytes

    def _count_all(self, result: Any) -> None:
        for leaf in tree_iter(result):
            if isinstance(leaf, Tensor) and leaf.device.type != "meta":  # which has no memory
                self._count(leaf)

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return
        num_bytes, number = storage.nbytes(), self._num_storages
        record = self._record if num_bytes else None
        self._num_storages += 1

        def freed(_: object) -> None:
            del self._storages[key]
            self.current_bytes -= num_bytes
            if record is not None:
                record(number, -num_bytes)

        self._storages[key] = weakref.ref(storage, freed)
        self.current_bytes += num_bytes
        if record is not None:
            record(number, num_bytes)


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
