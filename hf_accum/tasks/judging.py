"""How a classification or regression is judged: its figures, at the end intervals, and each example in files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import nn

from hf_accum.accumulation.example import Example
from hf_accum.accumulation.losses import Objective
from hf_accum.accumulation.splitting import Cutter
from hf_accum.data.stream import WindowStream
from hf_accum.distributed.collectives import on_rank_0
from hf_accum.distributed.ranks import Ranks
from hf_accum.evaluation.classification import (
    classification_figures,
    with_classification_intervals,
    with_regression_intervals,
)
from hf_accum.evaluation.decisions import Decisions, Fitted
from hf_accum.evaluation.evaluate import Metric, Metrics
from hf_accum.evaluation.judge import Judged, Predicted, judge
from hf_accum.evaluation.records import classified, measured, place_in, write_records
from hf_accum.tasks.task import PoolsParts


@runtime_checkable
class Judges(Protocol):
    """A task whose examples have an output and a loss each, and are shown to people."""

    @property
    def objective(self) -> Objective:
        """The loss of an example, by its outputs."""
        ...

    def collate(self, examples: Sequence[Example], length: int | None = None) -> Any:
        """A batch on the CPU."""
        ...

    def predict(self, model: nn.Module, batch: Any) -> Predicted:
        """The summed loss, the outputs, the references."""
        ...

    def show(self, example: Example) -> Mapping[str, Any]:
        """What shows an example to a person: its text, or the name of its image."""
        ...


@runtime_checkable
class Classifies(Judges, Protocol):
    """A task whose outputs are logits of labels."""

    @property
    def decisions(self) -> Decisions:
        """How they are read."""
        ...


def judge_classes(
    task: Classifies,
    model: nn.Module,
    held_out: WindowStream[Any],
    extra_metrics: Sequence[Metric] = (),
    *,
    ranks: Ranks,
    cutter: Cutter,
    folder: Path | None = None,
) -> Metrics:
    """The figures of a classification over a stream. A collective.

    With a folder also 95 % intervals, and in the folder `predictions.jsonl` and `errors.jsonl`.
    """
    judged = judge_each(task, model, held_out, ranks, cutter, is_last=folder is not None)
    decisions = task.decisions

    def compute() -> Metrics:
        figures = classification_figures(judged, decisions, extra_metrics)
        if folder is None:
            return figures
        notes = write_records(folder, judged, _place_in(held_out), classified(judged, decisions))
        figures["notes"] += notes
        return with_classification_intervals(figures, judged, decisions)

    return on_rank_0(ranks, compute)


def judge_numbers(
    task: Judges,
    model: nn.Module,
    held_out: WindowStream[Any],
    metrics: Sequence[Metric],
    *,
    ranks: Ranks,
    cutter: Cutter,
    folder: Path | None = None,
) -> Metrics:
    """The same of a regression."""
    judged = judge_each(task, model, held_out, ranks, cutter, is_last=folder is not None)

    def compute() -> Metrics:
        figures: Metrics = {"num_examples": len(judged.outputs), "loss": judged.loss}
        for metric in metrics:
            figures |= metric.compute(judged.outputs, judged.references)
        if folder is None:
            return figures
        figures["notes"] = write_records(folder, judged, _place_in(held_out), measured(judged))
        return with_regression_intervals(figures, judged)

    return on_rank_0(ranks, compute)


def fit_decisions(
    task: Classifies,
    model: nn.Module,
    part: WindowStream[Any],
    *,
    ranks: Ranks,
    cutter: Cutter,
    temperature: bool,
    thresholds: bool,
) -> Fitted | None:
    """What of the decisions is to be fitted, on a part of the data that nothing else is done with. A collective."""
    judged = judge_each(task, model, part, ranks, cutter, is_last=False)
    return on_rank_0(ranks, lambda: task.decisions.fit(judged, temperature=temperature, thresholds=thresholds).fitted)


def judge_each(
    task: Judges, model: nn.Module, stream: WindowStream[Any], ranks: Ranks, cutter: Cutter, *, is_last: bool
) -> Judged:
    """All examples of a stream, with the loss of each and what shows the worst if `is_last`. A collective."""
    each: dict[str, Any] = {"objective": task.objective, "show": task.show} if is_last else {}
    each["whole"] = task.whole if isinstance(task, PoolsParts) else None
    return judge(model, stream, task.collate, task.predict, ranks=ranks, cutter=cutter, **each)


def _place_in(stream: WindowStream[Any]) -> Any:
    return place_in(stream.source.names, stream.source.parts_per_row)
