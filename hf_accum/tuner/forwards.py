"""The capacity for forwards alone, as to predict or to evaluate: as predicted where memory is ample, or searched."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from hf_accum.accumulation.capacity import Capacity
from hf_accum.device.live_bytes import tensors_of
from hf_accum.device.memory import DeviceMemory
from hf_accum.tuner.prediction import predict
from hf_accum.tuner.search import tune
from hf_accum.tuner.tuning import Tuning
from hf_accum.tuner.workload import Workload

_AMPLE = 3.0  # times what is predicted: a device counts more than a trace, but not so much


def tune_forwards(
    workload: Workload,
    memory: DeviceMemory,
    device: torch.device,
    *,
    most: int,
    known: Tuning | None = None,
    max_probe_seconds: float | None = None,
    watch: Callable[[int, int], object] = lambda *_: None,
) -> Tuning:
    """As `tune`, of a workload that does not train.

    Where three times what `most` examples of the longest length are predicted to need is free, they are taken to fit,
    and nothing is probed: a forward that runs out of memory after all is repeated with half as many, and changes
    nothing.

    Raises:
        NothingFits, CannotTrace: as `tune` does.
    """
    started, longest = time.perf_counter(), workload.max_length
    prediction = predict(workload, untraced=True) if known is None else known.prediction
    assert prediction is not None
    needed = prediction.training.bytes_at(most, longest)
    free = memory.limit_bytes - memory.used_bytes(tensors_of(workload.model))
    if not prediction.is_traced or free < _AMPLE * (needed - prediction.fixed.total):
        how = {"known": known, "prediction": prediction, "max_probe_seconds": max_probe_seconds, "watch": watch}
        return tune(workload, memory, device, most=most, **how)
    found: dict[str, Any] = {
        "capacity": Capacity(most, prediction.training, needed, at_least=most),
        "device": memory.name,
        "limit_bytes": memory.limit_bytes,
        "max_length": longest,
        "seconds": time.perf_counter() - started,
        "from_cache": known is not None,
        "lengths": workload.lengths,
    }
    if known is not None:  # which may have measured something
        return replace(known, **found)
    line = {"slope": 1.0, "offset_bytes": -float(prediction.fixed.total)}
    return Tuning(probes=(), prediction=prediction, **line, **found)
