"""Tasks whose targets are tokens: their loss in chunks, and how well they are predicted, exactly, over ranks."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from hf_accum.accumulation.example import Example
from hf_accum.accumulation.splitting import Cutter
from hf_accum.data.stream import WindowStream
from hf_accum.distributed.collectives import on_rank_0
from hf_accum.distributed.ranks import Ranks
from hf_accum.evaluation.bootstrap import Weighted, with_intervals
from hf_accum.evaluation.evaluate import check_best_metric
from hf_accum.evaluation.judge import Predicted, judge
from hf_accum.evaluation.records import place_in, write_records
from hf_accum.evaluation.weighted import mean
from hf_accum.tasks.language_modeling.chunked_loss import ChunkedCrossEntropy, Targets, output_layer

Batch = tuple[dict[str, Tensor], Targets]
"""The model's inputs, and the tokens to predict."""


class TokenPrediction:
    """The forward of tasks whose targets are tokens: `accuracy` is the name of the share that is guessed right."""

    objective: ChunkedCrossEntropy
    accuracy: ClassVar[str]

    def summed_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of the targets, summed, in chunks."""
        inputs, targets = batch
        return self.objective(output_layer(model), model(**inputs).logits, targets)

    def predict(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss of each target, and whether it is guessed right."""
        inputs, targets = batch
        return self.objective.judge(output_layer(model), model(**inputs).logits, targets)

    def check_metrics(self, best_metric: str | None) -> None:
        """Refuse a `best_metric` that an evaluation has no figure of.

        Raises:
            UserError: naming those that it has.
        """
        check_best_metric(best_metric, {"perplexity": 0.0, self.accuracy: 0.0})


class _OfTokens(Protocol):
    accuracy: ClassVar[str]

    def collate(self, examples: Sequence[Example], length: int | None = None) -> Batch: ...

    def predict(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]: ...

    def show(self, example: Example) -> Mapping[str, Any]: ...


def evaluate_tokens(
    task: _OfTokens,
    model: nn.Module,
    held_out: WindowStream[Any],
    ranks: Ranks,
    cutter: Cutter,
    folder: Path | None = None,
) -> dict[str, Any]:
    """The mean loss over all targets of a stream, its exponential, and the share guessed right. A collective.

    With a folder also 95 % intervals, and in the folder each example with its mean loss.

    Raises:
        UserError, OutOfMemory: as `run_over` does.
    """

    def counted(model: nn.Module, batch: Batch) -> Predicted:
        """Of each text its summed loss and how many targets are guessed right; and how many there are."""
        losses, is_right = (values.cpu().double() for values in task.predict(model, batch))
        inputs, targets = batch
        num_texts, width = inputs["input_ids"].shape
        text = targets.positions.cpu() // width
        sums = torch.zeros(num_texts, 3, dtype=torch.float64)
        sums.index_add_(0, text, torch.stack([losses, is_right, torch.ones_like(losses)], 1))
        return Predicted(losses.sum(), sums[:, :2], sums[:, 2])

    each: dict[str, Any] = {"objective": _mean_loss, "show": task.show} if folder is not None else {}
    judged = judge(model, held_out, task.collate, counted, ranks=ranks, cutter=cutter, **each)
    (losses, num_right), num_tokens = judged.outputs.T, judged.references

    def weighted(weights: np.ndarray) -> dict[str, np.ndarray]:
        loss = mean(weights, losses, num_tokens)
        with np.errstate(over="ignore"):
            return {"loss": loss, "perplexity": np.exp(loss), task.accuracy: mean(weights, num_right, num_tokens)}

    def record(index: int) -> dict[str, Any]:
        return {"num_tokens": int(num_tokens[index]), "num_right": int(num_right[index])}

    def compute() -> dict[str, Any]:
        figures = {
            "num_examples": len(judged.ids),
            "num_tokens": int(num_tokens.sum()),
            "loss": judged.loss,
            "perplexity": perplexity(judged.loss),
            task.accuracy: float(num_right.sum() / num_tokens.sum()),
        }
        if folder is None:
            return figures
        place_of = place_in(held_out.source.names, held_out.source.parts_per_row)
        figures["notes"] = write_records(folder, judged, place_of, record)
        return with_intervals(figures, judged.groups, [Weighted(weighted)])

    return on_rank_0(ranks, compute)


def _mean_loss(sums: Tensor, num_tokens: Tensor) -> float:
    return float(sums[0, 0] / num_tokens[0])


def perplexity(loss: float) -> float:
    """Of a mean loss in nats; infinite where a float cannot hold it."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
