"""Exact gradient accumulation for Hugging Face models on devices too small for the batch.

The pieces for a training loop of one's own on accelerate; imported when they are first used. What a recipe is made of
is in `hf_accum.recipe`. A public name that changes or goes warns for one minor version before.
"""

from typing import TYPE_CHECKING

from hf_accum.lazy import lazily

if TYPE_CHECKING:
    from hf_accum.accumulation.accumulate import accumulate
    from hf_accum.accumulation.execution import MicroBatch, WindowExecution
    from hf_accum.accumulation.grad_cache import InBatchNegatives
    from hf_accum.accumulation.losses import BinaryCrossEntropy, CrossEntropy, SquaredError
    from hf_accum.accumulation.pair_cache import GradCache
    from hf_accum.data.loader_windows import LoaderWindows
    from hf_accum.data.windows_of import windows_of
    from hf_accum.errors import OutOfMemory, UserError
    from hf_accum.evaluation.each_once import predict_each_once
    from hf_accum.gradient_check.check import check
    from hf_accum.tuner.module_capacity import FoundCapacity, find_capacity

__version__ = "0.1.0"

_HOMES = {
    "BinaryCrossEntropy": "accumulation.losses",
    "CrossEntropy": "accumulation.losses",
    "FoundCapacity": "tuner.module_capacity",
    "GradCache": "accumulation.pair_cache",
    "InBatchNegatives": "accumulation.grad_cache",
    "LoaderWindows": "data.loader_windows",
    "MicroBatch": "accumulation.execution",
    "OutOfMemory": "errors",
    "SquaredError": "accumulation.losses",
    "UserError": "errors",
    "WindowExecution": "accumulation.execution",
    "accumulate": "accumulation.accumulate",
    "check": "gradient_check.check",
    "find_capacity": "tuner.module_capacity",
    "predict_each_once": "evaluation.each_once",
    "windows_of": "data.windows_of",
}

__all__ = [
    "BinaryCrossEntropy",
    "CrossEntropy",
    "FoundCapacity",
    "GradCache",
    "InBatchNegatives",
    "LoaderWindows",
    "MicroBatch",
    "OutOfMemory",
    "SquaredError",
    "UserError",
    "WindowExecution",
    "accumulate",
    "check",
    "find_capacity",
    "predict_each_once",
    "windows_of",
]

__getattr__ = lazily(__name__, _HOMES)
