"""Errors at chosen operations: what a device without memory does, wherever in a forward or backward it does it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hf_accum.accumulation.execution import MicroBatch


def out_of_memory() -> Exception:
    """What torch raises on any device."""
    return torch.OutOfMemoryError("out of memory: made up")


class Failing(TorchDispatchMode):
    """Counts the operations of micro-batches, and fails at one of them.

    `at` is counted from 1, over all micro-batches, and fails once. With `above` it is counted in each micro-batch
    anew, and fails in every one of more examples than that (0: in every one). Without `at` nothing fails.
    """

    def __init__(
        self, at: int | None = None, above: int | None = None, error: Callable[[], Exception] = out_of_memory
    ) -> None:
        super().__init__()
        self.at = at
        self.above = above
        self.error = error
        self.num_operations = 0
        self.num_failures = 0
        self.sizes: list[int] = []
        """Of all micro-batches, those that failed included."""
        self._next = 0

    @contextmanager
    def during(self, micro_batch: MicroBatch) -> Iterator[None]:
        """Armed for the operations of a micro-batch."""
        self.sizes.append(len(micro_batch.examples))
        if self.above is not None:
            self._next = 0
        with self:
            yield

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num_operations += 1
        self._next += 1
        armed = self.num_failures == 0 if self.above is None else self.sizes[-1] > self.above
        if armed and self._next == self.at:
            self.num_failures += 1
            raise self.error()
        return func(*args, **(kwargs or {}))
