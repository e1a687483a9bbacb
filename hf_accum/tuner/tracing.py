"""Bytes of training, counted over live tensors: on a real device, or on fake tensors without any.

A fake trace runs the model's own operations on tensors that have a shape and no memory. The bytes that live at
each moment of a forward and backward are, for one architecture, a polynomial of the number of examples and their
length; `hf_accum.accumulation.capacity` fits it from a few traces.
"""

import copy
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
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
from hf_accum.tuner.kernels import Capability, cuda_kernels
from hf_accum.tuner.workload import Workload

_ONE_AT_A_TIME = threading.Lock()  # a trace takes the model's own weights away meanwhile


class CannotTrace(RuntimeError):
    """The model does something that tensors without values cannot do; the message says what."""


@dataclass(frozen=True)
class Trace:
    """Live bytes over one window at one micro-batch: `training` over a forward and backward with the gradients
    and the optimizer's state alive, `forward_end` the moment of it where the backward starts; `evaluation` over a
    forward without gradients.
    """

    num_examples: int
    length: int
    training: list[int]
    forward_end: int
    evaluation: list[int]


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
    record: Callable[[int, int], object] | None = None
    """Told of each tensor's memory, as `LiveBytes` does."""
    fixed: FixedBytes = field(init=False)
    state_shapes: list[tuple[torch.Size, torch.dtype]] = field(init=False, default_factory=list)
    """Of the optimizer's state, after its first step."""

    def run(self, points: Iterable[tuple[int, int]]) -> list[Trace]:
        """Trace micro-batches of (num_examples, length).

        Raises:
            CannotTrace: if an operation depends on values, or knows no fake tensors.
        """
        from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

        work = self.workload
        try:
            # Real tensors that are no parameter or buffer (weights of classes, say) are taken in as constants.
            with (
                _ONE_AT_A_TIME,
                keeping_random_state(),
                FakeTensorMode(allow_non_fake_inputs=True),
                _faked(work.model),
                _offloading_to_nowhere(work.model),
            ):
                trainable = [p for p in work.model.parameters() if p.requires_grad]
                with unset_fake_temporarily():  # bitsandbytes computes at once what its 8 bits stand for
                    optimizer = work.optimizer(work.model)
                tensors = tensors_of(work.model)
                for parameter in trainable:
                    parameter.grad = torch.empty_like(parameter)
                held = [*tensors, *(p.grad for p in trainable if p.grad is not None)]
                with LiveBytes(held=held, record=self.record) as live:
                    alive = live.current_bytes
                    weights = sum_bytes(tensors)
                    with warnings.catch_warnings():
                        # Of bitsandbytes, for which a trace runs on a CPU.
                        warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
                        optimizer.step()
                    paged = sum(tensor.nbytes for tensor in paged_state(optimizer))  # it gives way to all else
                    state = live.current_bytes - alive - paged
                    live.leave_out(paged)
                    self.fixed = FixedBytes(weights, alive - weights, state, live.peak_bytes)
                    self.state_shapes = [(t.shape, t.dtype) for t in _state_tensors(optimizer)]
                    with self._as_in_training():
                        return [self._trace(live, num_examples, length) for num_examples, length in points]
        except (RuntimeError, NotImplementedError, TypeError, AssertionError) as error:
            if type(error) is torch.OutOfMemoryError:
                raise
            raise CannotTrace(
                f"{type(work.model).__name__} cannot be traced without a device ({first_line(error)})"
            ) from error

    @contextmanager
    def _as_in_training(self) -> Iterator[None]:
        with _one_text_a_row(), nullcontext() if self.capability is None else cuda_kernels(self.capability):
            yield

    def _trace(self, live: LiveBytes, num_examples: int, length: int) -> Trace:
        cpu, work = torch.device("cpu"), self.workload
        live.timeline = []
        loss, batch = work.forward(num_examples, length, cpu)
        forward_end = len(live.timeline) - 1
        loss.backward()
        del loss, batch
        training, live.timeline = live.timeline, []
        work.evaluate(num_examples, length, cpu)
        return Trace(num_examples, length, training, forward_end, live.timeline)


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


@contextmanager
def _faked(model: nn.Module) -> Iterator[None]:
    """Put fake tensors in the place of a model's parameters and buffers, and at the end these back.

    Tied weights stay tied.
    """
    places: list[tuple[dict[str, Any], str, Tensor]] = [
        (tensors, name, tensor)
        for module in model.modules()
        for tensors in (module._parameters, module._buffers)
        for name, tensor in tensors.items()
        if tensor is not None
    ]
    fakes: dict[Tensor, Tensor] = {}
    try:
        for tensors, name, tensor in places:
            if tensor not in fakes:
                fakes[tensor] = _fake_of(tensor)
            tensors[name] = fakes[tensor]
        yield
    finally:
        for tensors, name, tensor in places:
            tensors[name] = tensor


def _fake_of(tensor: Tensor) -> Tensor:
    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    if not isinstance(tensor, nn.Parameter):
        return fake
    parameter: Any = nn.Parameter(fake, requires_grad=tensor.requires_grad)
    state: Any = getattr(tensor, "quant_state", None)  # of bitsandbytes' 4-bit weights
    if state is not None:
        parameter.quant_state = _fake_state_of(state)
    return parameter


def _fake_state_of(state: Any) -> Any:
    if state is None:
        return None
    twin = copy.copy(state)
    for name in ("absmax", "code", "offset"):
        of_state = getattr(state, name)
        if of_state is not None:
            setattr(twin, name, torch.empty(of_state.shape, dtype=of_state.dtype, device="cpu"))
    twin.state2 = _fake_state_of(state.state2)
    return twin
