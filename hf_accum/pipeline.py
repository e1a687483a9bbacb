"""Windows made ready ahead of the device: agreed on by the ranks, cut, padded, and on their way to the device."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from hf_accum.cutting import Cutter
from hf_accum.prefetch import prefetched
from hf_accum.stream import WindowStream
from hf_accum.window import Example, MadeAhead, Piece, StreamCounts, Window

B = TypeVar("B")

_NUM_BATCHES = 8
_COPY_ASIDE = frozenset({"cuda", "xpu"})  # devices (ROCm's are cuda) that copy from pinned memory while they compute


@dataclass(frozen=True)
class _Start:
    """What the background thread hands over before the batches of a window."""

    window: Window
    version: tuple[int, int]
    pieces: Sequence[Piece]


class Pipeline(Generic[B]):
    """Iterate over it to get the windows of a stream, whose micro-batches have their `batch` on the device.

    `collate(examples, length)` makes a batch, of tensors on the CPU, padded to that length. It runs in a background
    thread, as do the reading, the tokenising, the ranks' agreement and the cut, at most `num_batches` micro-batches
    ahead, so that the memory needed does not depend on the size of a window. A window whose cut has changed since
    (after memory ran out, or when the costs were learned anew) is cut and collated when it is used.

    One more micro-batch is on its way to the device while one is computed there.
    """

    def __init__(
        self,
        windows: WindowStream[Any],
        cutter: Cutter,
        collate: Callable[[Sequence[Example], int], B],
        device: torch.device,
        *,
        num_batches: int = _NUM_BATCHES,
    ) -> None:
        self.windows = windows
        self.cutter = cutter
        self.collate = collate
        self.device = device
        self.num_batches = num_batches
        self.counts = StreamCounts()
        """Of all windows so far."""

    def __iter__(self) -> Iterator[Window]:
        """The windows. Whatever a window's micro-batches do not take of its batches is left out."""
        with closing(prefetched(self._produce, self.num_batches)) as made:

            def take() -> "tuple[_Start | B | None, float]":
                started = time.perf_counter()
                item = next(made, None)
                return item, time.perf_counter() - started

            start, seconds = take()
            while isinstance(start, _Start):
                window = start.window
                window.seconds_waited = seconds
                num_left = len(start.pieces)

                def batches(window: Window = window) -> Iterator[Any]:
                    nonlocal num_left
                    while num_left:
                        num_left -= 1
                        batch, seconds = take()
                        window.seconds_waited += seconds
                        yield batch

                window.collate = lambda piece, length: to_device(self._collate(piece, length), self.device)
                window.made_ahead = MadeAhead(start.version, start.pieces, ahead_on(self.device, batches()))
                self.counts = window.counts
                yield window
                for _ in range(num_left):
                    next(made, None)
                start, seconds = take()
            self.counts = self.windows.counts  # what came after the last window too

    def bad_rows(self) -> Counter[str]:
        """The bad rows left out so far over all ranks, by their reason. A collective."""
        return self.windows.bad_rows(self.counts)

    def _produce(self) -> Iterator["_Start | B"]:
        for window in self.windows:
            version = self.cutter.version
            pieces = window.cut(self.cutter)
            yield _Start(window, version, pieces)
            for piece in pieces:
                yield self._collate(piece, self.cutter.padded(max(example.length for example in piece)))

    def _collate(self, piece: Piece, length: int) -> B:
        batch = self.collate(piece, length)
        if self.device.type not in _COPY_ASIDE:
            return batch
        return tree_map_only(torch.Tensor, lambda tensor: tensor.pin_memory(), batch)


def to_device(batch: B, device: torch.device) -> B:
    """All tensors of a batch on a device; from pinned memory without waiting for it."""
    return tree_map_only(torch.Tensor, lambda tensor: tensor.to(device, non_blocking=True), batch)


def ahead_on(device: torch.device, batches: Iterator[B]) -> Iterator[B]:
    """The batches, each copied to the device while the one before it is used there."""
    if device.type not in _COPY_ASIDE:
        yield from (to_device(batch, device) for batch in batches)
        return
    copying = torch.Stream(device)
    on_its_way: tuple[B, torch.Event] | None = None
    for batch in batches:
        with copying:
            moved = to_device(batch, device)
            arrived = copying.record_event()
        if on_its_way is not None:
            yield _arrived(*on_its_way, device)
        on_its_way = moved, arrived
    if on_its_way is not None:
        yield _arrived(*on_its_way, device)


def _arrived(batch: B, event: torch.Event, device: torch.device) -> B:
    computing = torch.accelerator.current_stream(device)
    computing.wait_event(event)
    for tensor in tree_leaves(batch):
        if isinstance(tensor, torch.Tensor):
            tensor.record_stream(computing)  # its memory is not given to the copying stream before it was used
    return batch
