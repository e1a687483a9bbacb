"""Bytes of training or of forwards, counted over live tensors: on a real device, or on fake tensors without any.

A fake trace runs the model's own operations on tensors that have a shape and no memory. The bytes that live at
each moment of a forward and backward are, for one architecture, a polynomial of the number of examples and their
length; `hf_accum.accumulation.capacity` fits it from a few traces.
"""

import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_iter

from hf_accum.device.live_bytes import LiveBytes, sum_bytes, tensors_of
from hf_accum.errors import first_line
from hf_accum.models.offload import offload_of
from hf_accum.models.optimizer import paged_state
from hf_accum.seeding import keeping_random_state
from hf_accum.tuner.extension import Extension, NotRegular
from hf_accum.tuner.fake_tensors import on_fake_tensors
from hf_accum.tuner.kernels import Capability, cuda_kernels
from hf_accum.tuner.memory_events import MemoryEvents, Recorder
from hf_accum.tuner.repeated_blocks import RepeatedBlocks, find_repeated_blocks
from hf_accum.tuner.workload import Workload

_NUM_BLOCKS = (2, 3, 4)
"""Of blocks that repeat so many are traced."""

_ONE_AT_A_TIME = threading.Lock()  # a trace takes the model's own weights away meanwhile


class CannotTrace(RuntimeError):
    """The model does something that tensors without values cannot do; the message says what."""


@dataclass(frozen=True)
class Trace:
    """One micro-batch with the gradients and the optimizer's state alive: `start_bytes` live where it begins.

    Of forwards alone there is only the evaluation.
    """

    num_examples: int
    length: int
    start_bytes: int
    events: MemoryEvents

    @cached_property
    def _live(self) -> list[list[int]]:
        return self.events.live_bytes(self.start_bytes)

    @property
    def training(self) -> list[int]:
        """Live bytes at the moments of a forward and backward."""
        return [*self._live[0], *self._live[1]]

    @property
    def forward_end(self) -> int:
        """The moment of training where the backward starts."""
        return len(self._live[0]) - 1

    @property
    def evaluation(self) -> list[int]:
        """Live bytes at the moments of a forward without gradients."""
        return self._live[2]


@dataclass(frozen=True)
class FixedBytes:
    """What does not depend on the micro-batch. `optimizer_peak` is the whole of what lives in an optimizer step."""

    weights: int
    gradients: int
    optimizer_state: int
    optimizer_peak: int

    @property
    def total(self) -> int:
        """What is alive all through a window."""
        return self.weights + self.gradients + self.optimizer_state

    @property
    def floor(self) -> int:
        """What a window needs at any micro-batch size: what is always alive, or the optimizer step."""
        return max(self.total, self.optimizer_peak)


@dataclass
class Tracer:
    """Runs a workload on fake tensors. The model's own parameters and buffers are set aside meanwhile, untouched.

    They may be on any device, or on `meta` (a model built from its config, without weights). Fake tensors are
    taken for CPU tensors: on `meta` other attention kernels are chosen, which need more memory. With the compute
    `capability` of a card, as (8, 6), its kernels are in the place of the CPU's.
    """

    workload: Workload
    capability: Capability | None = None
    fixed: FixedBytes = field(init=False)
    fixed_events: MemoryEvents = field(init=False)
    """Of weights, gradients, the optimizer's state, and its first step."""
    step_events: MemoryEvents = field(init=False)
    """Of a later optimizer step."""
    state_shapes: list[tuple[torch.Size, torch.dtype]] = field(init=False, default_factory=list)
    """Of the optimizer's state, after its first step."""

    @contextmanager
    def started(self) -> Iterator[Callable[[int, int], Trace]]:
        """The model on fake tensors, after an optimizer step: what traces a micro-batch of (num_examples, length).

        Raises:
            CannotTrace: there and here, if an operation depends on values, or knows no fake tensors.
        """
        with ExitStack() as entered:
            with _explained(self.workload.model):
                live, recorder = self._begin(entered)
            yield self._tracing(live, recorder)

    def _begin(self, entered: ExitStack) -> tuple[LiveBytes, Recorder]:
        """Enter all that a trace needs, and take an optimizer step."""
        from torch._subclasses.fake_tensor import unset_fake_temporarily

        work = self.workload
        entered.enter_context(_ONE_AT_A_TIME)
        entered.enter_context(keeping_random_state())
        entered.enter_context(on_fake_tensors(work.model))
        entered.enter_context(_offloading_to_nowhere(work.model))
        if not work.trains:
            return self._begin_forwards(entered)
        trainable = [p for p in work.model.parameters() if p.requires_grad]
        with unset_fake_temporarily():  # bitsandbytes computes at once what its 8 bits stand for
            optimizer = work.optimizer(work.model)
        tensors = tensors_of(work.model)
        for parameter in trainable:
            parameter.grad = torch.empty_like(parameter)
        held = [*tensors, *(p.grad for p in trainable if p.grad is not None)]
        recorder = Recorder()
        live = entered.enter_context(LiveBytes(held=held, record=recorder))
        alive = live.current_bytes
        weights = sum_bytes(tensors)
        with warnings.catch_warnings():
            # Of bitsandbytes, for which a trace runs on a CPU.
            warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
            optimizer.step()
            live.leave_out(paged_state(optimizer))  # it gives way to all else
            self.fixed = FixedBytes(weights, alive - weights, live.current_bytes - alive, live.peak_bytes)
            recorder(-1, 0)  # a moment behind the step: what it freed, it freed before that, and what is left stays
            self.fixed_events = recorder.take()
            optimizer.step()
        self.step_events = recorder.take()
        self.state_shapes = [(t.shape, t.dtype) for t in _state_tensors(optimizer)]
        entered.callback(lambda kept: None, optimizer)  # its state lives as long
        entered.enter_context(self._as_in_training())
        return live, recorder

    def _begin_forwards(self, entered: ExitStack) -> tuple[LiveBytes, Recorder]:
        """Of forwards alone, which need nothing but the weights."""
        recorder = Recorder()
        live = entered.enter_context(LiveBytes(held=tensors_of(self.workload.model), record=recorder))
        self.fixed = FixedBytes(live.current_bytes, 0, 0, live.current_bytes)
        self.fixed_events = self.step_events = recorder.take()
        entered.enter_context(self._as_in_training())
        return live, recorder

    @contextmanager
    def _as_in_training(self) -> Iterator[None]:
        with _one_text_a_row(), nullcontext() if self.capability is None else cuda_kernels(self.capability):
            yield

    def _tracing(self, live: LiveBytes, recorder: Recorder) -> Callable[[int, int], Trace]:
        """What traces a micro-batch: of a model with many like blocks a short one, the others by its example."""

        def whole(num_examples: int, length: int) -> Trace:
            cpu, work, start_bytes = torch.device("cpu"), self.workload, live.current_bytes
            recorder.take()
            forward_end = training_end = 0
            with _explained(work.model):
                if work.trains:
                    loss, batch = work.forward(num_examples, length, cpu)
                    forward_end = recorder.num_events
                    loss.backward()
                    del loss, batch
                    training_end = recorder.num_events
                work.evaluate(num_examples, length, cpu)
            return Trace(num_examples, length, start_bytes, recorder.take(forward_end, training_end))

        blocks = find_repeated_blocks(self.workload.model, _NUM_BLOCKS[-1] + 1)
        return whole if blocks is None else _Shortened(whole, blocks)


@contextmanager
def _explained(model: nn.Module) -> Iterator[None]:
    """What fake tensors cannot do is said as such."""
    try:
        yield
    except (RuntimeError, NotImplementedError, TypeError, AssertionError) as error:
        if type(error) is torch.OutOfMemoryError:
            raise
        raise CannotTrace(
            f"{type(model).__name__} cannot be traced without a device ({first_line(error)})"
        ) from error


class _Shortened:
    """Traces a model of which blocks repeat, with few of them; and whole, where that says nothing of the others."""

    def __init__(self, whole: Callable[[int, int], Trace], blocks: RepeatedBlocks) -> None:
        self._whole = whole
        self._blocks = blocks
        self._extensions: list[Extension] = []
        self._is_regular = True

    def __call__(self, num_examples: int, length: int) -> Trace:
        if self._is_regular:
            try:
                return self._extended(num_examples, length)
            except Exception:  # of a model that needs all of its blocks; what else is wrong the whole one says too
                self._is_regular = False
        return self._whole(num_examples, length)

    def _extended(self, num_examples: int, length: int) -> Trace:
        def traced(number: int) -> Trace:
            with self._blocks.shortened(number):
                return self._whole(num_examples, length)

        shortest = traced(_NUM_BLOCKS[0])
        depth = self._blocks.number - _NUM_BLOCKS[0]
        for extension in self._extensions:
            with suppress(NotRegular):
                return replace(shortest, events=extension.extend(shortest.events, depth))
        others = [traced(number).events for number in _NUM_BLOCKS[1:]]
        self._extensions.append(Extension.of(shortest.events, *others))
        return replace(shortest, events=self._extensions[-1].extend(shortest.events, depth))


@contextmanager
def _one_text_a_row() -> Iterator[None]:
    """Have causal models of transformers know, in this thread, that no row of a batch holds several texts.

    They ask positions for it, where there is neither mask nor cache. Where these have no values they make a mask of
    (num_examples, 1, length, length), with which attention takes another kernel than in training.
    """
    masking: Any = sys.modules.get("transformers.masking_utils")
    asked = getattr(masking, "find_packed_sequence_indices", None)
    if asked is None:
        yield
        return
    thread = threading.get_ident()

    def find(*args: Any, **kwargs: Any) -> Tensor | None:
        return None if threading.get_ident() == thread else asked(*args, **kwargs)

    masking.find_packed_sequence_indices = find
    try:
        yield
    finally:
        masking.find_packed_sequence_indices = asked


@contextmanager
def _offloading_to_nowhere(model: nn.Module) -> Iterator[None]:
    """Have activations that are offloaded leave the device that is counted, which has the host's name here."""
    offload = offload_of(model)
    if offload is None:
        yield
        return
    host, offload.host = offload.host, torch.device("meta")
    try:
        yield
    finally:
        offload.host = host


def _state_tensors(optimizer: Optimizer) -> Iterator[Tensor]:
    for state in optimizer.state.values():
        yield from (leaf for leaf in tree_iter(state) if isinstance(leaf, Tensor))
