"""Micro-batches run for real, to see what they take; afterwards all is as it was."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_accum.device.live_bytes import sum_bytes, tensors_of
from hf_accum.device.memory import DeviceMemory
from hf_accum.device.timer import Stopwatch
from hf_accum.models.state import keeping_state
from hf_accum.seeding import keeping_random_state
from hf_accum.tuner.prediction import Prediction
from hf_accum.tuner.workload import Workload


@dataclass(frozen=True)
class Probe:
    """A micro-batch that was really run; `measured_bytes` None: it ran out of memory. It fits within the limit.

    `seconds` are those of its forward and backward, or of a forward alone.
    """

    num_examples: int
    length: int
    predicted_bytes: int
    measured_bytes: int | None
    fits: bool
    seconds: float | None = None


class Prober:
    """Runs micro-batches for real, in training with gradients and optimizer state alive; keeps what was measured."""

    def __init__(
        self,
        workload: Workload,
        memory: DeviceMemory,
        device: torch.device,
        prediction: Prediction,
        watch: Callable[[int, int], object] = lambda *_: None,
    ) -> None:
        self.workload = workload
        self.memory = memory
        self.device = device
        self.prediction = prediction
        self.probes: list[Probe] = []
        self._watch = watch  # is told of each probe before it: its examples, their length
        self.used_bytes = memory.used_bytes(self._held())
        self.slope = 1.0
        self.offset_bytes = float(self.used_bytes - sum_bytes(self._held()))

    def trust(self, slope: float, offset_bytes: float) -> None:
        """Take the line of an earlier result; its offset is on top of what was in use then."""
        self.slope, self.offset_bytes = slope, offset_bytes + self.used_bytes

    def largest(self, length: int, most: int) -> int:
        """The most examples that should fit, by what was measured so far."""
        return self.prediction.largest(length, self.budget_bytes(), most)

    def _held(self) -> list[Tensor]:
        model = self.workload.model
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        return [*tensors_of(model), *gradients]

    def budget_bytes(self) -> float:
        """The device's limit as predicted bytes."""
        return (self.memory.limit_bytes - self.offset_bytes) / self.slope

    def measured(self, predicted_bytes: float) -> float:
        """Predicted bytes as the device would count them."""
        return self.offset_bytes + self.slope * predicted_bytes

    def run(self, num_examples: int, length: int) -> Probe:
        """Probe one size."""
        self._watch(num_examples, length)
        predicted = self.prediction.training.bytes_at(num_examples, length)
        timing: Stopwatch | None = None
        with leaving_no_trace(self.workload.model, self.device):

            def work() -> None:
                nonlocal timing
                alive = [
                    torch.zeros(shape, dtype=dtype, device=self.device)
                    for shape, dtype in self.prediction.state_shapes
                ]
                for parameter in self.workload.model.parameters() if self.workload.trains else ():
                    if parameter.requires_grad:
                        parameter.grad = torch.zeros_like(parameter)
                stopwatch = Stopwatch.on(self.device)
                self.workload.run(num_examples, length, self.device)
                if stopwatch is not None:
                    stopwatch.stop()
                timing = stopwatch
                del alive

            measured = self.memory.measure(work, self._held())
            if not self.probes:
                self.memory.look_again()
        fits = measured is not None and measured <= self.memory.limit_bytes
        seconds = None if timing is None else timing.read()
        self.probes.append(Probe(num_examples, length, predicted, measured, fits, seconds))
        self._fit()
        return self.probes[-1]

    def _fit(self) -> None:
        """The line through what was measured: through the last point alone, or through the two furthest apart."""
        points = sorted({(p.predicted_bytes, p.measured_bytes) for p in self.probes if p.measured_bytes is not None})
        if not points:
            return
        (low, measured_low), (high, measured_high) = points[0], points[-1]
        if high > low and measured_high > measured_low:
            self.slope = (measured_high - measured_low) / (high - low)
        self.offset_bytes = measured_low - self.slope * low


@contextmanager
def leaving_no_trace(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Afterwards the model's state but its weights, and the random generators, are bit for bit as before."""
    with keeping_state(model), keeping_random_state(device):
        yield
