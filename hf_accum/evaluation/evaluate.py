"""Evaluation over ranks, each example exactly once, with `evaluate`'s metrics."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from hf_accum.accumulation.batch_parts import to_device
from hf_accum.accumulation.capacity import WorkingCapacity
from hf_accum.accumulation.example import Example, inputs_of
from hf_accum.accumulation.splitting import Cutter
from hf_accum.data.stream import WindowStream
from hf_accum.device.out_of_memory import Failure, classify, release
from hf_accum.distributed.collectives import on_rank_0
from hf_accum.distributed.ranks import Ranks
from hf_accum.errors import OutOfMemory, UserError, first_line
from hf_accum.models.modes import keeping_modes

Metrics = dict[str, Any]
R = TypeVar("R")
_SHIPPED = Path(__file__).parent / "metrics"
# Of the shipped metrics and evaluate's own; for any other figure higher is better.
LOWER_IS_BETTER = frozenset({"loss", "perplexity", "mse", "mae", "mape", "smape", "mase", "brier_score"})


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
    known = {"loss", *(name for name, value in figures.items() if not isinstance(value, Mapping))}
    if best_metric is not None and best_metric not in known:
        raise UserError(f"`best_metric` {best_metric}: has to be one of {', '.join(sorted(known))}")


@dataclass(frozen=True)
class Predicted:
    """Of a batch: the summed loss, a scalar; predictions and references, a row for each example."""

    loss: Tensor
    predictions: Tensor
    references: Tensor


def run_over(
    model: nn.Module, stream: WindowStream[Any], forward: Callable[[Sequence[Example], int], R], cutter: Cutter
) -> tuple[list[R], float]:
    """`forward(examples, length)` over all of this rank's examples of a stream, and the weight of those of all ranks.

    In eval mode and without gradients; the model is left in the mode it was in. Batches are cut as micro-batches of
    training are, smaller where one runs out of memory, which changes nothing for the training.

    Raises:
        UserError: for a bad row.
        OutOfMemory: if a single example does not fit.
    """
    cutter = replace(cutter, capacity=WorkingCapacity(cutter.capacity.tuned))
    device = next(model.parameters()).device
    results: list[R] = []
    weight = 0.0
    with keeping_modes(model), torch.inference_mode():
        model.eval()
        for window in stream:
            weight += window.num_items
            results += _in_pieces(inputs_of(window.examples), forward, cutter, device)
    return results, weight


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

    device = next(model.parameters()).device

    def forward(examples: Sequence[Example], length: int) -> tuple[Tensor, np.ndarray, np.ndarray]:
        found = predict(model, to_device(collate(examples, length), device))
        # The CPU first: MPS has no float64.
        return found.loss.cpu().double(), found.predictions.cpu().numpy(), found.references.cpu().numpy()

    results, weight = run_over(model, stream, forward, cutter)
    losses = [loss for loss, _, _ in results]
    predictions = [predicted for _, predicted, _ in results]
    references = [truth for _, _, truth in results]
    mine = (
        float(torch.stack(losses).sum()) if losses else 0.0,
        np.concatenate(predictions) if predictions else None,
        np.concatenate(references) if references else None,
    )
    everyone = ranks.gather_objects(mine)

    def compute() -> Metrics:
        predicted = np.concatenate([part for _, part, _ in everyone if part is not None])
        truth = np.concatenate([part for _, _, part in everyone if part is not None])
        assert len(predicted) == stream.counts.num_examples, "an example was lost or used twice"
        figures: Metrics = {
            "num_examples": len(predicted),
            "loss": sum(loss for loss, _, _ in everyone) / weight,
        }
        for metric in metrics:
            figures |= metric.compute(predicted, truth)
        return figures

    return on_rank_0(ranks, compute)


def _in_pieces(
    examples: Sequence[Example],
    forward: Callable[[Sequence[Example], int], R],
    cutter: Cutter,
    device: torch.device,
) -> Iterator[R]:
    """`forward` over all examples in batches that fit."""
    left = cutter.cut(examples)
    while left:
        batch = left[0]
        length = cutter.padded(batch[0].length)
        try:
            yield forward(batch, length)
        except Exception as error:
            if classify(error) is not Failure.OUT_OF_MEMORY:
                raise
            if len(batch) == 1:
                raise OutOfMemory(
                    f"evaluation: a single example of {length} {cutter.lengths.unit} does not fit into memory "
                    f"({first_line(error)}); a smaller `{cutter.lengths.flag}` needs less"
                ) from error
            release(error, device)
            cutter.capacity.out_of_memory(len(batch), length)
            left = cutter.cut([example for piece in left for example in piece])
        else:
            left = left[1:]
