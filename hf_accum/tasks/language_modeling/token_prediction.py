"""Tasks whose targets are tokens: their loss in chunks, and how well they are predicted, exactly, over ranks."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from hf_accum.accumulation.batch_parts import to_device
from hf_accum.accumulation.example import Example
from hf_accum.accumulation.splitting import Cutter
from hf_accum.data.stream import WindowStream
from hf_accum.distributed.ranks import Ranks
from hf_accum.evaluation.evaluate import check_best_metric
from hf_accum.evaluation.run_over import run_over
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
        """The summed losses of the targets in chunks, and how many of each are guessed right."""
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


def evaluate_tokens(
    task: _OfTokens, model: nn.Module, held_out: WindowStream[Any], ranks: Ranks, cutter: Cutter
) -> dict[str, Any]:
    """The mean loss over all targets of a stream, its exponential, and the share guessed right. A collective.

    Raises:
        UserError, OutOfMemory: as `run_over` does.
    """
    device = next(model.parameters()).device

    def forward(examples: Sequence[Example], length: int) -> tuple[int, float, int]:
        losses, num_right = task.predict(model, to_device(task.collate(examples, length), device))
        return len(examples), sum(losses.tolist()), int(num_right.sum())

    results, weight = run_over(model, held_out, forward, cutter)
    everyone = [of_batch for of_rank in ranks.gather_objects(results) for of_batch in of_rank]
    loss = sum(loss for _, loss, _ in everyone) / weight
    return {
        "num_examples": sum(number for number, _, _ in everyone),
        "num_tokens": int(weight),
        "loss": loss,
        "perplexity": perplexity(loss),
        task.accuracy: sum(right for _, _, right in everyone) / weight,
    }


def perplexity(loss: float) -> float:
    """Of a mean loss in nats; infinite where a float cannot hold it."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
