"""What a card's allocator holds for micro-batches, more than their tensors: these replayed on a model of it."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import cache

from hf_accum.tuner.allocator import Allocate, CachingAllocator, Free, replay
from hf_accum.tuner.kernels import Capability, workspace_bytes
from hf_accum.tuner.memory_events import MemoryEvents
from hf_accum.tuner.prediction import Prediction
from hf_accum.tuner.tracing import Trace, Tracer

_NUM_GUESSES = 4
_NUM_WINDOWS = 2  # in the first the allocator grows; the second finds what that left


class ReservedBytes:
    """The most that CUDA's allocator reserves, with expandable segments, and cuBLAS's workspaces.

    The weights, the gradients and the optimizer's state lie there first. Then come windows of micro-batches, which
    `trace` traces, each with an optimizer step. Blocks are rounded, and between uneven ones there is room that fits
    nothing. Predicted by the allocator's rules (`hf_accum.tuner.allocator`); not measured on a GPU.

    Args:
        tracer: of a workload with the kernels of a card, started.
        trace: what it gave then.
        newest: the compute capability of the card whose workspaces are counted; by default that of the tracer.
    """

    def __init__(self, tracer: Tracer, trace: Callable[[int, int], Trace], newest: Capability | None = None) -> None:
        assert tracer.capability is not None
        self._fixed = tracer.fixed_events
        self._step = tracer.step_events
        self._trace = trace
        self._workspaces = workspace_bytes(newest or tracer.capability)
        self._known: dict[tuple[int, int], int] = {}
        self._share = 1.0  # of the examples whose tensors fit, those that fitted at the length before

    def bytes_at(self, num_examples: int, length: int) -> int:
        """Of windows of micro-batches of this size, evaluation after them.

        Raises:
            CannotTrace: if the model cannot be traced.
        """
        key = num_examples, length
        if key not in self._known:
            events = self._trace(num_examples, length).events
            self._known[key] = self._peaks([[events]] * _NUM_WINDOWS)[-1]
        return self._known[key]

    def largest(self, prediction: Prediction, length: int, budget_bytes: int, at_most: int) -> int:
        """The most examples for which what is reserved is within a budget; 0: not one. More are taken to need more.

        Raises:
            CannotTrace: if the model cannot be traced.
        """
        most = prediction.largest(length, budget_bytes - self._workspaces, at_most)
        fits, too_many, num_tries = 0, most + 1, 0
        tried = min(most, max(1, round(most * self._share)))
        while too_many - fits > 1:
            over = self.bytes_at(tried, length) - budget_bytes
            fits, too_many = (tried, too_many) if over <= 0 else (fits, tried)
            num_tries += 1
            if num_tries < _NUM_GUESSES:  # as if only the tensors needed more or less
                tried = prediction.largest(length, prediction.needed_bytes(tried, length) - over, at_most)
            else:
                tried = (fits + too_many) // 2
            tried = min(max(tried, fits + 1), too_many - 1)
        self._share = fits / most if most else 1.0
        return fits

    def over(self, windows: Iterable[Iterable[tuple[int, int]]]) -> list[int]:
        """The most up to the end of each window of micro-batches (number of examples, length), without evaluation.

        Raises:
            CannotTrace: if the model cannot be traced.
        """
        traced = cache(lambda num_examples, length: self._trace(num_examples, length).events.of_training)
        return self._peaks((traced(*micro_batch) for micro_batch in window) for window in windows)

    def _peaks(self, windows: Iterable[Iterable[MemoryEvents]]) -> list[int]:
        allocator = CachingAllocator(expandable_segments=True)
        replay(_allocations(self._fixed, "fixed", keep=True), allocator)
        peaks: list[int] = []
        for window in windows:
            for events in window:
                replay(_allocations(events, "micro-batch"), allocator)
            replay(_allocations(self._step, "step"), allocator)
            peaks.append(allocator.peak_reserved_bytes + self._workspaces)
        return peaks


def _allocations(events: MemoryEvents, name: Hashable, *, keep: bool = False) -> Iterator[Allocate | Free]:
    """What was traced, in the order of time. What is never freed is freed at the end, or kept."""
    ends: dict[int, list[Hashable]] = {}
    for event, (num_bytes, freed_at) in enumerate(zip(events.num_bytes, events.freed_at, strict=True)):
        yield from map(Free, ends.pop(event, ()))
        if num_bytes:
            yield Allocate((name, event), num_bytes)
            ends.setdefault(freed_at, []).append((name, event))
    if not keep:
        yield from map(Free, ends.pop(len(events.num_bytes), ()))
