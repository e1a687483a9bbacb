"""Exact gradient accumulation for Hugging Face models on devices too small for the batch.

The pieces, to take into any training loop on accelerate; imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_accum.accumulation.accumulate import accumulate, discard_gradients
    from hf_accum.accumulation.example import Example
    from hf_accum.accumulation.execution import MicroBatch, WindowExecution
    from hf_accum.accumulation.grad_cache import InBatchNegatives
    from hf_accum.accumulation.losses import BinaryCrossEntropy, CrossEntropy, SquaredError
    from hf_accum.accumulation.nonfinite import NonFiniteCheck
    from hf_accum.accumulation.pair_cache import GradCache
    from hf_accum.accumulation.splitting import cut
    from hf_accum.accumulation.window import Window
    from hf_accum.cli.command import command
    from hf_accum.config.recipe import RecipeConfig
    from hf_accum.data.loader_windows import LoaderWindows, windows_of
    from hf_accum.data.pipeline import Pipeline
    from hf_accum.data.source import BadRow, Source, of_dataset, open_source
    from hf_accum.data.split import dataset_of
    from hf_accum.data.stream import WindowStream
    from hf_accum.distributed.launch import start_accelerator
    from hf_accum.distributed.ranks import Ranks, ranks_of
    from hf_accum.evaluation.each_once import predict_each_once
    from hf_accum.evaluation.evaluate import Metric, evaluate_model
    from hf_accum.models.spec import ModelSpec
    from hf_accum.models.tokenizers import load_tokenizer
    from hf_accum.run.signals import StopRequest
    from hf_accum.run.start import StartedRun
    from hf_accum.run.training import Training
    from hf_accum.tuner.module_capacity import FoundCapacity, find_capacity
    from hf_accum.tuner.workload import Workload, planned

__version__ = "0.1.0"

_HOMES = {
    "BadRow": "data.source",
    "BinaryCrossEntropy": "accumulation.losses",
    "CrossEntropy": "accumulation.losses",
    "Example": "accumulation.example",
    "FoundCapacity": "tuner.module_capacity",
    "GradCache": "accumulation.pair_cache",
    "InBatchNegatives": "accumulation.grad_cache",
    "LoaderWindows": "data.loader_windows",
    "Metric": "evaluation.evaluate",
    "MicroBatch": "accumulation.execution",
    "ModelSpec": "models.spec",
    "NonFiniteCheck": "accumulation.nonfinite",
    "Pipeline": "data.pipeline",
    "Ranks": "distributed.ranks",
    "RecipeConfig": "config.recipe",
    "Source": "data.source",
    "SquaredError": "accumulation.losses",
    "StartedRun": "run.start",
    "StopRequest": "run.signals",
    "Training": "run.training",
    "Window": "accumulation.window",
    "WindowExecution": "accumulation.execution",
    "WindowStream": "data.stream",
    "Workload": "tuner.workload",
    "accumulate": "accumulation.accumulate",
    "command": "cli.command",
    "cut": "accumulation.splitting",
    "dataset_of": "data.split",
    "discard_gradients": "accumulation.accumulate",
    "evaluate_model": "evaluation.evaluate",
    "find_capacity": "tuner.module_capacity",
    "load_tokenizer": "models.tokenizers",
    "of_dataset": "data.source",
    "open_source": "data.source",
    "planned": "tuner.workload",
    "predict_each_once": "evaluation.each_once",
    "ranks_of": "distributed.ranks",
    "start_accelerator": "distributed.launch",
    "windows_of": "data.loader_windows",
}

__all__ = [
    "BadRow",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "Example",
    "FoundCapacity",
    "GradCache",
    "InBatchNegatives",
    "LoaderWindows",
    "Metric",
    "MicroBatch",
    "ModelSpec",
    "NonFiniteCheck",
    "Pipeline",
    "Ranks",
    "RecipeConfig",
    "Source",
    "SquaredError",
    "StartedRun",
    "StopRequest",
    "Training",
    "Window",
    "WindowExecution",
    "WindowStream",
    "Workload",
    "accumulate",
    "command",
    "cut",
    "dataset_of",
    "discard_gradients",
    "evaluate_model",
    "find_capacity",
    "load_tokenizer",
    "of_dataset",
    "open_source",
    "planned",
    "predict_each_once",
    "ranks_of",
    "start_accelerator",
    "windows_of",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
