"""Exact gradient accumulation for Hugging Face models on devices too small for the batch.

The pieces, to take into any training loop on accelerate; imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_accum.accumulation import accumulate, forget
    from hf_accum.cutting import cut
    from hf_accum.evaluation import Metric, evaluate_model
    from hf_accum.guard import GradientGuard
    from hf_accum.losses import BinaryCrossEntropy, CrossEntropy, SquaredError
    from hf_accum.pipeline import Pipeline
    from hf_accum.ranks import ranks_of, start_accelerator
    from hf_accum.source import BadRow, Source, of_dataset, open_source
    from hf_accum.stopping import StopRequest
    from hf_accum.stream import WindowStream
    from hf_accum.window import Example, MicroBatch, Window

__version__ = "0.1.0"

_HOMES = {
    "accumulate": "accumulation",
    "BadRow": "source",
    "BinaryCrossEntropy": "losses",
    "CrossEntropy": "losses",
    "Example": "window",
    "GradientGuard": "guard",
    "Metric": "evaluation",
    "MicroBatch": "window",
    "Pipeline": "pipeline",
    "Source": "source",
    "SquaredError": "losses",
    "StopRequest": "stopping",
    "Window": "window",
    "WindowStream": "stream",
    "cut": "cutting",
    "evaluate_model": "evaluation",
    "forget": "accumulation",
    "of_dataset": "source",
    "open_source": "source",
    "ranks_of": "ranks",
    "start_accelerator": "ranks",
}

__all__ = [
    "BadRow",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "Example",
    "GradientGuard",
    "Metric",
    "MicroBatch",
    "Pipeline",
    "Source",
    "SquaredError",
    "StopRequest",
    "Window",
    "WindowStream",
    "accumulate",
    "cut",
    "evaluate_model",
    "forget",
    "of_dataset",
    "open_source",
    "ranks_of",
    "start_accelerator",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
