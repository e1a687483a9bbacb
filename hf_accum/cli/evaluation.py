"""The evaluation of a run that is through, on what it held out or on other data: opened for a command."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

from torch import nn

from hf_accum.accumulation.splitting import Cutter
from hf_accum.cli.handed_over import opened
from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.split import SplitData
from hf_accum.distributed.collectives import on_rank_0
from hf_accum.distributed.ranks import Ranks
from hf_accum.models.earlier_weights import labels_in, with_unknown_labels
from hf_accum.models.precision import compute_in
from hf_accum.run.evaluation import Evaluation
from hf_accum.run.finished import cutter_for, ready
from hf_accum.run.result import check_through
from hf_accum.tasks.labels import named_labels

ALL_ROWS = "--max_eval_examples=null"
"""The flag by which no sample of other data is taken, as a run took one of its held-out part."""


class Opened(NamedTuple):
    """A run's model, loaded, and what it is evaluated on; `folder` takes what is written of it."""

    ranks: Ranks
    task: Any
    model: nn.Module
    cutter: Cutter
    data: SplitData
    evaluation: Evaluation
    folder: Path


@contextmanager
def open_evaluation(
    module: ModuleType,
    folder: Path,
    config: RecipeConfig,
    dataset: str | None,
    split: str = "train",
    output: Path | None = None,
    more_labels: Mapping[str, str | None] = MappingProxyType({}),
) -> Iterator[Opened]:
    """Open the evaluation of the run in `folder`, made by a recipe's module, on a dataset; None: what it held out.

    `more_labels`, as the flag `flag_of_labels` has them, are those that it did not learn, each with its column where
    it has one of its own: it is judged on rows with them, and never predicts them.

    `config` are its flags, or others where rows are to be read otherwise. What is written goes to `output`, or to a
    folder that is not kept. A collective.

    Raises:
        UserError: if the run is not through, or the data cannot be used: a row without text, or with a label that
            the model does not know, say.
    """
    result = check_through(folder)
    config = as_trained(config, dataset, split)
    if more_labels:
        changes: dict[str, Any] = {(flag := flag_of_labels(config)): [*getattr(config, flag, ()), *more_labels]}
        if isinstance(columns := getattr(config, "label_column", None), list):
            changes["label_column"] = [*columns, *filter(None, more_labels.values())]
        config = replace(config, **changes)
    with opened(module, config, output, all_rows=dataset is not None) as handed:
        started, config, data, place = handed.run, handed.config, handed.data, handed.run.folder
        own, spec = labels_in(result), handed.spec
        names = tuple(spec.config_values.get("id2label", {}).values())
        if more_labels:
            spec = replace(spec, config_values={**spec.config_values, **named_labels(own)})
        task, model = ready(result, handed.task, spec, handed.processor, config, started)
        if more_labels:
            with_unknown_labels(model, own, names)
        cutter = cutter_for(task, model, config, started)
        compute_in(model, started.precision)
        on_rank_0(started.ranks, lambda: place.mkdir(parents=True, exist_ok=True))
        evaluation = Evaluation(started, config, data, task, handed.draw)
        yield Opened(started.ranks, task, model, cutter, data, evaluation, place)


def flag_of_labels(config: RecipeConfig) -> str:
    """The flag with what a run tells apart: labels, or types of entities (whose `labels` are tags by number)."""
    return "types" if hasattr(config, "types") else "labels"


def notes_of(data: Any) -> list[str]:
    """What is to be said of how the labels of other data are read."""
    labels = getattr(data, "labels", None)
    return [] if labels is None else list(labels.notes)


def as_trained(config: RecipeConfig, dataset: str | None, split: str) -> RecipeConfig:
    """The flags with the rows of a dataset, if one is given, and no weights that were of the data trained on."""
    if dataset is None:
        return config
    changes: dict[str, Any] = {"dataset": dataset, "train_split": split, "eval_split": None}
    weights = {"class_weights": "none", "positive_weights": [], "tune_thresholds": False}
    weights |= {"temperature_scaling": False}
    changes |= {name: value for name, value in weights.items() if hasattr(config, name)}
    return replace(config, **changes)
