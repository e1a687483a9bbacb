"""Evaluation over ranks, each example exactly once, with `evaluate`'s metrics."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from hf_accum.accumulation.example import Example
from hf_accum.accumulation.splitting import Cutter
from hf_accum.data.stream import WindowStream
from hf_accum.distributed.collectives import on_rank_0
from hf_accum.distributed.ranks import Ranks
from hf_accum.errors import UserError, first_line
from hf_accum.evaluation.judge import Predicted, judge

Metrics = dict[str, Any]
_SHIPPED = Path(__file__).parent / "metrics"
# Of the shipped metrics and evaluate's own; for any other figure higher is better.
LOWER_IS_BETTER = frozenset(
    {"loss", "perplexity", "mse", "mae", "mape", "smape", "mase", "brier_score", "expected_calibration_error"}
)


@dataclass(frozen=True)
class Metric:
    """A metric of `evaluate`: shipped with this package, or of the hub, with what its compute is handed."""

    name: str
    arguments: Mapping[str, Any]

    def compute(self, predictions: Any, references: Any) -> Metrics:
        """The figures, by name.

        Raises:
            UserError: if the hub has no such metric, it cannot be reached, or it takes no such predictions.
        """
        import evaluate

        shipped = _SHIPPED / self.name
        try:
            # evaluate writes a lock file even where it keeps the data in memory.
            with tempfile.TemporaryDirectory() as folder:
                module = evaluate.load(
                    str(shipped) if shipped.is_dir() else self.name, cache_dir=folder, keep_in_memory=True
                )
                figures = module.compute(predictions=predictions, references=references, **self.arguments)
        except (FileNotFoundError, ConnectionError, ImportError) as error:
            raise UserError(
                f"metric {self.name!r}: neither shipped ({', '.join(shipped_metrics())}) nor to be had from the "
                f"hub ({first_line(error)})"
            ) from error
        except (TypeError, ValueError) as error:
            raise UserError(
                f"metric {self.name!r} cannot take this task's predictions ({first_line(error)})"
            ) from error
        plain = (np.generic, np.ndarray)  # which JSON does not have
        return {name: f.tolist() if isinstance(f, plain) else f for name, f in (figures or {}).items()}


def shipped_metrics() -> list[str]:
    """The metrics that need no network."""
    return sorted(folder.name for folder in _SHIPPED.iterdir() if (folder / f"{folder.name}.py").is_file())


def check_metrics(metrics: Sequence[Metric], best_metric: str | None, sample: Tensor) -> None:
    """Compute metrics on a sample of predictions (also its own references), before the training that needs them.

    Raises:
        UserError: if a metric is not to be had, cannot take such predictions, or has no figure `best_metric`.
    """
    figures: Metrics = {}
    for metric in metrics:
        figures |= metric.compute(sample.numpy(), sample.round().numpy())
    check_best_metric(best_metric, figures)


def check_best_metric(best_metric: str | None, figures: Mapping[str, Any]) -> None:
    """Refuse a `best_metric` that is not the loss, or one of the single figures of an evaluation.

    Raises:
        UserError: naming those that there are.
    """
    known = {"loss", *(name for name, value in figures.items() if not isinstance(value, Mapping | list))}
    if best_metric is not None and best_metric not in known:
        raise UserError(f"`best_metric` {best_metric}: has to be one of {', '.join(sorted(known))}")


def evaluate_model(
    model: nn.Module,
    stream: WindowStream[Any],
    collate: Callable[[Sequence[Example], int], Any],
    predict: Callable[[nn.Module, Any], Predicted],
    metrics: Sequence[Metric],
    *,
    ranks: Ranks,
    cutter: Cutter,
) -> Metrics:
    """The loss and the metrics of a model over all examples of a stream, each used once.

    `collate` makes a batch of some examples, padded to a length; `predict` gives its summed loss, and of its logits
    the little that the metrics need (class indices, say), which is all that the ranks exchange. The model is not
    the data-parallel wrapper, for ranks have different numbers of batches.

    Raises:
        UserError, OutOfMemory: as `run_over` does.
    """
    judged = judge(model, stream, collate, predict, ranks=ranks, cutter=cutter)

    def compute() -> Metrics:
        figures: Metrics = {"num_examples": len(judged.outputs), "loss": judged.loss}
        for metric in metrics:
            figures |= metric.compute(judged.outputs, judged.references)
        return figures

    return on_rank_0(ranks, compute)
