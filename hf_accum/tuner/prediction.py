"""The bytes that a workload needs, as functions of the micro-batch: predicted from a few traces, without a device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from hf_accum.accumulation.capacity import Peak, fit_peak
from hf_accum.tuner.kernels import Capability
from hf_accum.tuner.tracing import CannotTrace, FixedBytes, Trace, Tracer
from hf_accum.tuner.workload import Workload


@dataclass(frozen=True)
class Prediction:
    """What a trace says: the peak of a forward and backward, that of evaluation, and what never changes."""

    training: Peak
    """Of forwards alone that of evaluation."""
    evaluation: Peak
    activations: Peak
    """Alive where the backward starts; of forwards alone as the others."""
    fixed: FixedBytes
    state_shapes: Sequence[tuple[torch.Size, torch.dtype]]
    is_traced: bool = True
    """Otherwise only what is fixed is known: an example of any length counts as one byte, and probes say how many."""

    def needed_bytes(self, num_examples: int, length: int) -> int:
        """The peak of training at a micro-batch, the optimizer step included."""
        return max(self.fixed.floor, self.training.bytes_at(num_examples, length))

    def largest(self, length: int, budget_bytes: float, at_most: int) -> int:
        """The most examples of a length that fit; 0: not one."""
        return self.training.largest(length, budget_bytes, at_most) if self.fixed.floor <= budget_bytes else 0


def predict(workload: Workload, *, untraced: bool = False, capability: Capability | None = None) -> Prediction:
    """Trace a workload without a device, at up to three lengths; with the kernels of a card of this `capability`.

    With `untraced` a model whose forward depends on values is predicted to need what is fixed, and nothing is said of
    its micro-batches.

    Raises:
        CannotTrace: if the model cannot be traced.
    """
    tracer = Tracer(workload, capability)
    try:
        with tracer.started() as trace:
            return predict_from(tracer, trace)
    except CannotTrace:
        if not untraced or not hasattr(tracer, "fixed"):
            raise
        one_byte = Peak(((float(tracer.fixed.total), 1.0),), workload.max_length)
        return Prediction(one_byte, one_byte, one_byte, tracer.fixed, tracer.state_shapes, is_traced=False)


def predict_from(tracer: Tracer, trace: Callable[[int, int], Trace]) -> Prediction:
    """The same of a tracer that has started."""
    longest = tracer.workload.max_length
    lengths = [longest, max(1, longest // 2), max(1, longest // 4)] if tracer.workload.lengths.vary else [longest]
    traces = [trace(number, length) for length in dict.fromkeys(lengths) for number in (1, 2, 3)]

    def fit(timeline: Callable[[Trace], Sequence[int]]) -> Peak:
        several = {(t.num_examples, t.length): timeline(t) for t in traces if t.num_examples > 1}
        single = {(number, t.length): timeline(t) for t in traces if t.num_examples == 1 for number in (1, 2)}
        return replace(fit_peak(several), single=fit_peak(single))

    evaluation = fit(lambda trace: trace.evaluation)
    if not tracer.workload.trains:
        return Prediction(evaluation, evaluation, evaluation, tracer.fixed, tracer.state_shapes)
    return Prediction(
        training=fit(lambda trace: trace.training),
        evaluation=evaluation,
        activations=fit(lambda trace: [trace.training[trace.forward_end]]),
        fixed=tracer.fixed,
        state_shapes=tracer.state_shapes,
    )
