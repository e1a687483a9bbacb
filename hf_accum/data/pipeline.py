"""Windows made ready ahead of the device: agreed on by the ranks, cut, padded, and on their way to the device."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from hf_accum.accumulation.batch_parts import to_device
from hf_accum.accumulation.example import Example
from hf_accum.accumulation.execution import WindowExecution
from hf_accum.accumulation.splitting import Cutter
from hf_accum.accumulation.window import Window
from hf_accum.accumulation.window_cut import Cut, MadeAhead, Piece, cut_window
from hf_accum.data.prefetch import prefetched
from hf_accum.data.stream import WindowStream
from hf_accum.data.stream_state import StreamState, gathered

B = TypeVar("B")

_NUM_BATCHES = 8
_COPY_ASIDE = frozenset({"cuda", "xpu"})  # devices (ROCm's are cuda) that copy from pinned memory while they compute


@dataclass(frozen=True)
class _Start:
    """What the background thread hands over before the batches of a window."""

    window: Window
    cut: Cut


class Pipeline(Generic[B]):
    """Iterate over it to get the windows of a stream, whose micro-batches have their `batch` on the device.

    `cutter` is also what `micro_batches` takes: a `Cutter`, or the most examples of one forward.
    `collate(examples, length)` makes a batch, of tensors on the CPU, padded to that length. It runs in a background
    thread, as do the reading, the tokenising, the ranks' agreement and the cut, at most `num_batches` micro-batches
    ahead, so that the memory needed does not depend on the size of a window. A window whose cut has changed since
    (after memory ran out, or when the costs were learned anew) is cut and collated when it is used.

    One more micro-batch is on its way to the device while one is computed there.

    A window's batches are there until the next window is asked for; after that they are made anew. `collate` is to
    draw no random numbers from the common generators, which the forward uses meanwhile.

    An error of reading, on whichever rank, is raised; or, with `keeps_failure`, it ends the windows on all ranks
    after the same one, and stands in `failure`: for a run that saves before it raises it.
    """

    def __init__(
        self,
        windows: WindowStream[Any],
        cutter: Cutter | int,
        collate: Callable[[Sequence[Example], int], B],
        device: torch.device,
        *,
        num_batches: int = _NUM_BATCHES,
        keeps_failure: bool = False,
    ) -> None:
        self.windows = windows
        self.cutter = Cutter.of(cutter)
        self.collate = collate
        self.device = device
        self.num_batches = num_batches
        self.keeps_failure = keeps_failure
        self.counts = windows.counts.copy()
        """Of all windows so far."""
        self._before = windows.start
        self._last: WindowExecution | None = None
        self._copying = torch.Stream(device) if device.type in _COPY_ASIDE else None

    def __iter__(self) -> Iterator[WindowExecution]:
        """The windows. Whatever a window's micro-batches do not take of its batches is left out."""
        with closing(prefetched(self._produce, self.num_batches)) as made:

            def take() -> "tuple[_Start | B | None, float]":
                started = time.perf_counter()
                try:
                    item = next(made, None)
                except Exception as error:
                    if not self.keeps_failure or error is not self.windows.failure:
                        raise
                    item = None
                return item, time.perf_counter() - started

            start, seconds = take()
            while isinstance(start, _Start):
                execution = WindowExecution(start.window, seconds_waited=seconds)
                batches = _Batches(execution, take, len(start.cut.pieces))
                execution.collate = self._collate_now(execution)
                execution.made_ahead = MadeAhead(start.cut, self._on_device(batches))
                self._before, self._last = self._state, execution
                self.counts = start.window.state.counts
                yield execution
                execution.made_ahead = None
                batches.leave_out()
                start, seconds = take()
            self.counts = self.windows.counts  # what came after the last window too

    @property
    def failure(self) -> Exception | None:
        """The error of reading that ended the windows."""
        return self.windows.failure

    def bad_rows(self) -> Counter[str]:
        """The bad rows left out so far over all ranks, by their reason. A collective."""
        return self.windows.bad_rows(self.counts)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes: the place in the data behind the last window that is done. A collective."""
        return gathered(self._state, self.windows.ranks)

    @property
    def _state(self) -> StreamState:
        return self._before if self._last is None or not self._last.is_done else self._last.window.state

    def load_state_dict(self, state: Mapping[str, Any], *, new_order: bool = False) -> None:
        """Go on behind the window of a state, as `WindowStream.load_state_dict` does, with a new iteration.

        Raises:
            UserError: while it is iterated.
            KeyError, TypeError, ValueError: if it is no such thing.
        """
        self.windows.load_state_dict(state, new_order=new_order)
        self._before, self._last = self.windows.start, None
        self.counts = self.windows.counts.copy()

    def _produce(self) -> Iterator["_Start | B"]:
        for window in self.windows:
            cut = cut_window(window, self.cutter)
            yield _Start(window, cut)
            for piece in cut.pieces:
                yield self._collate(piece, self.cutter.padded(max(example.length for example in piece)))

    def _collate_now(self, execution: WindowExecution) -> Callable[[Piece, int], B]:
        """For a piece that was not made ahead: the device waits for it."""

        def collate(piece: Piece, length: int) -> B:
            started = time.perf_counter()
            batch = to_device(self._collate(piece, length), self.device)
            execution.seconds_waited += time.perf_counter() - started
            return batch

        return collate

    def _on_device(self, batches: "_Batches[B]") -> Iterator[B]:
        """The batches, each copied to the device while the one before it is used there."""
        if self._copying is None:
            yield from (to_device(batch, self.device) for batch in batches)
            return
        on_its_way: tuple[B, torch.Event] | None = None
        for batch in batches:
            with self._copying:
                moved = to_device(batch, self.device)
                arrived = self._copying.record_event()
            if on_its_way is not None:
                yield _arrived(*on_its_way, self.device)
            on_its_way = moved, arrived
        if on_its_way is not None:
            yield _arrived(*on_its_way, self.device)

    def _collate(self, piece: Piece, length: int) -> B:
        batch = _plain(self.collate(piece, length))
        if self.device.type not in _COPY_ASIDE:
            return batch
        return tree_map_only(torch.Tensor, lambda tensor: tensor.pin_memory(), batch)


class _Batches(Generic[B]):
    """The batches of one window, as the background thread hands them over."""

    def __init__(self, execution: WindowExecution, take: Callable[[], tuple[Any, float]], count: int) -> None:
        self._execution = execution
        self._take = take
        self._num_left = count

    def __iter__(self) -> Iterator[B]:
        while self._num_left:
            self._num_left -= 1
            batch, seconds = self._take()
            self._execution.seconds_waited += seconds
            yield batch

    def leave_out(self) -> None:
        """Those that nobody has taken."""
        for _ in range(self._num_left):
            self._take()
        self._num_left = 0


def _plain(batch: Any) -> Any:
    """Mappings of any kind (tokenizers return one of their own) as dictionaries, in which tensors are found."""
    if isinstance(batch, Mapping):
        return {key: _plain(value) for key, value in batch.items()}
    return type(batch)(map(_plain, batch)) if type(batch) in (list, tuple) else batch


def _arrived(batch: B, event: torch.Event, device: torch.device) -> B:
    computing = torch.accelerator.current_stream(device)
    computing.wait_event(event)
    for tensor in tree_leaves(batch):
        if isinstance(tensor, torch.Tensor):
            tensor.record_stream(computing)  # its memory is not given to the copying stream before it was used
    return batch
