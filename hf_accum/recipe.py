"""What a recipe is made of: flags, a started run, streamed data, the training; imported when it is first used."""

from typing import TYPE_CHECKING

from hf_accum.lazy import lazily

if TYPE_CHECKING:
    from hf_accum.accumulation.example import Example
    from hf_accum.accumulation.nonfinite import NonFiniteCheck
    from hf_accum.cli.command import command
    from hf_accum.config.recipe import RecipeConfig
    from hf_accum.data.embedded import Embedded, with_dataset
    from hf_accum.data.pipeline import Pipeline
    from hf_accum.data.source import BadRow, Source, of_dataset, open_source
    from hf_accum.data.stream import WindowStream
    from hf_accum.distributed.launch import start_accelerator
    from hf_accum.distributed.ranks import Ranks, ranks_of
    from hf_accum.evaluation.evaluate import Metric, evaluate_model
    from hf_accum.models.spec import ModelSpec
    from hf_accum.models.tokenizers import load_tokenizer
    from hf_accum.run.signals import StopRequest
    from hf_accum.run.start import StartedRun
    from hf_accum.run.training import Training
    from hf_accum.tuner.workload import Workload, planned

_HOMES = {
    "BadRow": "data.source",
    "Embedded": "data.embedded",
    "Example": "accumulation.example",
    "Metric": "evaluation.evaluate",
    "ModelSpec": "models.spec",
    "NonFiniteCheck": "accumulation.nonfinite",
    "Pipeline": "data.pipeline",
    "Ranks": "distributed.ranks",
    "RecipeConfig": "config.recipe",
    "Source": "data.source",
    "StartedRun": "run.start",
    "StopRequest": "run.signals",
    "Training": "run.training",
    "WindowStream": "data.stream",
    "Workload": "tuner.workload",
    "command": "cli.command",
    "evaluate_model": "evaluation.evaluate",
    "load_tokenizer": "models.tokenizers",
    "of_dataset": "data.source",
    "open_source": "data.source",
    "planned": "tuner.workload",
    "ranks_of": "distributed.ranks",
    "start_accelerator": "distributed.launch",
    "with_dataset": "data.embedded",
}

__all__ = [
    "BadRow",
    "Embedded",
    "Example",
    "Metric",
    "ModelSpec",
    "NonFiniteCheck",
    "Pipeline",
    "Ranks",
    "RecipeConfig",
    "Source",
    "StartedRun",
    "StopRequest",
    "Training",
    "WindowStream",
    "Workload",
    "command",
    "evaluate_model",
    "load_tokenizer",
    "of_dataset",
    "open_source",
    "planned",
    "ranks_of",
    "start_accelerator",
    "with_dataset",
]

__getattr__ = lazily(__name__, _HOMES)
