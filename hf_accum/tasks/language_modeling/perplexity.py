"""How well a language model predicts tokens, exactly, over ranks: the loss in chunks, the perplexity."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from hf_accum.accumulation.example import Example
from hf_accum.accumulation.splitting import Cutter
from hf_accum.data.pipeline import to_device
from hf_accum.data.stream import WindowStream
from hf_accum.distributed.ranks import Ranks
from hf_accum.evaluation.evaluate import check_best_metric, run_over


def evaluate_tokens(
    model: nn.Module,
    stream: WindowStream[Any],
    collate: Callable[[Sequence[Example], int], Any],
    predict: Callable[[nn.Module, Any], tuple[Tensor, Tensor]],
    *,
    accuracy: str,
    ranks: Ranks,
    cutter: Cutter,
) -> dict[str, Any]:
    """The mean loss over all targets of a stream, its exponential, and the share guessed right, under the name
    `accuracy`. A collective.

    `predict` gives the summed losses of a batch in chunks, and how many of each were guessed right.

    Raises:
        UserError, OutOfMemory: as `run_over` does.
    """
    device = next(model.parameters()).device

    def forward(examples: Sequence[Example], length: int) -> tuple[int, float, int]:
        losses, num_right = predict(model, to_device(collate(examples, length), device))
        return len(examples), sum(losses.tolist()), int(num_right.sum())

    results, weight = run_over(model, stream, forward, cutter)
    everyone = [of_batch for of_rank in ranks.gather_objects(results) for of_batch in of_rank]
    loss = sum(loss for _, loss, _ in everyone) / weight
    return {
        "num_examples": sum(number for number, _, _ in everyone),
        "num_tokens": int(weight),
        "loss": loss,
        "perplexity": perplexity(loss),
        accuracy: sum(right for _, _, right in everyone) / weight,
    }


def check_token_metric(best_metric: str | None, accuracy: str) -> None:
    """Refuse a `best_metric` that `evaluate_tokens` has no figure of.

    Raises:
        UserError: naming those that it has.
    """
    check_best_metric(best_metric, {"perplexity": 0.0, accuracy: 0.0})


def perplexity(loss: float) -> float:
    """Of a mean loss in nats; infinite where a float cannot hold it."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
