"""What a model makes of all examples of a stream, gathered over the ranks: each once, in the order of the files."""

import heapq
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from hf_accum.accumulation.batch_parts import to_device
from hf_accum.accumulation.example import Example
from hf_accum.accumulation.splitting import Cutter
from hf_accum.data.stream import WindowStream
from hf_accum.distributed.ranks import Ranks
from hf_accum.evaluation.run_over import run_over
from hf_accum.seeding import derive_seed

NUM_WORST = 1_000
"""Of how many examples more is kept than numbers: those of the greatest losses."""


@dataclass(frozen=True)
class Predicted:
    """Of a batch: the summed loss, a scalar; predictions and references, a row for each example."""

    loss: Tensor
    predictions: Tensor
    references: Tensor


@dataclass(frozen=True)
class Worst:
    """An example of great loss: its place among all, and what shows it to a person."""

    index: int
    shown: Mapping[str, Any]


@dataclass(frozen=True)
class Judged:
    """All examples of a stream, (num_examples, ...), in the order of the files."""

    ids: Sequence[str]
    groups: np.ndarray
    """Numbers from 0: examples that belong together have the same."""
    weights: np.ndarray
    outputs: np.ndarray
    references: np.ndarray
    loss: float
    """Summed over all, divided by their weights."""
    losses: np.ndarray | None = None
    """Of each, where they were asked for."""
    worst: Sequence[Worst] = ()
    """Those of the greatest losses, from the greatest on."""


def judge(
    model: nn.Module,
    stream: WindowStream[Any],
    collate: Callable[[Sequence[Example], int], Any],
    predict: Callable[[nn.Module, Any], Predicted],
    *,
    ranks: Ranks,
    cutter: Cutter,
    objective: Callable[[Tensor, Tensor], Any] | None = None,
    show: Callable[[Example], Mapping[str, Any]] | None = None,
    whole: Callable[[Sequence[Example], Mapping[str, Tensor]], Predicted] | None = None,
) -> Judged:
    """Predict all examples of a stream, each once, on whatever rank. A collective: all ranks get the whole.

    Args:
        collate: makes a batch of some examples, padded to a length.
        predict: gives its summed loss, and outputs and references with a row for each example.
        objective: where given, the loss of each example is computed by it from its outputs.
        show: what is kept of the examples of the greatest losses (`NUM_WORST` of them); needs an objective.
        whole: where given, `predict` is of parts, and this makes of their outputs, by id, what examples get.

    Raises:
        UserError, OutOfMemory: as `run_over` does.
    """
    device = next(model.parameters()).device
    worst: list[tuple[float, str, Mapping[str, Any]]] = []

    def keep_worst(examples: Sequence[Example], losses: np.ndarray) -> None:
        assert show is not None
        for example, loss in zip(examples, np.nan_to_num(losses, nan=np.inf).tolist(), strict=True):
            if len(worst) < NUM_WORST:
                heapq.heappush(worst, (loss, example.id, show(example)))
            elif (loss, example.id) > worst[0][:2]:
                heapq.heapreplace(worst, (loss, example.id, show(example)))

    def forward(examples: Sequence[Example], length: int) -> Any:
        found = predict(model, to_device(collate(examples, length), device))
        if whole is None:
            return columns_of(examples, found)
        return dict(zip([part.id for part in examples], found.predictions.cpu(), strict=True))

    def join(examples: Sequence[Example], outputs: list[dict[str, Tensor]]) -> Any:
        assert whole is not None
        return columns_of(examples, whole(examples, {part: row for rows in outputs for part, row in rows.items()}))

    def columns_of(examples: Sequence[Example], found: Predicted) -> tuple[float, list[np.ndarray]]:
        # The CPU first: MPS has no float64.
        loss, outputs, references = float(found.loss.cpu().double()), found.predictions.cpu(), found.references.cpu()
        losses = np.zeros(len(examples))
        if objective is not None:
            losses = np.array(
                [float(objective(*row)) for row in zip(outputs.split(1), references.split(1), strict=True)]
            )
        if show is not None:
            keep_worst(examples, losses)
        numbers = [
            np.array([example.weight for example in examples]),
            np.array([*map(group_of, examples)], dtype=np.uint64),
        ]
        return loss, [np.array([e.id for e in examples]), *numbers, losses, outputs.numpy(), references.numpy()]

    results, weight = run_over(model, stream, forward, cutter, None if whole is None else join)
    mine = [np.concatenate(columns) for columns in zip(*(columns for _, columns in results), strict=True)]
    everyone = ranks.gather_objects((sum(loss for loss, _ in results), mine, worst))
    parts = [columns for _, columns, _ in everyone if columns]
    ids, weights, groups, losses, outputs, references = (
        np.concatenate(columns) for columns in zip(*parts, strict=True)
    )
    assert len(ids) == stream.counts.num_examples, "an example was lost or used twice"
    order = sorted(range(len(ids)), key=lambda index: _place(ids[index]))
    names = [str(ids[index]) for index in order]
    places = {name: index for index, name in enumerate(names)}
    greatest = heapq.nlargest(
        NUM_WORST, (entry for _, _, of_rank in everyone for entry in of_rank), key=lambda e: e[:2]
    )
    return Judged(
        ids=names,
        groups=np.unique(groups[order], return_inverse=True)[1],
        weights=weights[order],
        outputs=outputs[order],
        references=references[order],
        # Of no item (no pixel of small masks may have a class, once scaled) there is no loss to tell.
        loss=sum(loss for loss, _, _ in everyone) / weight if weight else math.nan,
        losses=None if objective is None else losses[order],
        worst=[Worst(places[example_id], shown) for _, example_id, shown in greatest],
    )


class Each(NamedTuple):
    """An example with its figures, where a task makes them itself: by its id and its group (see `group_of`).

    `loss` is the mean of its items, of which its `weight` is the number; of `outputs`, (width,), figures are made.
    """

    id: str
    group: int
    weight: float
    loss: float
    outputs: np.ndarray
    shown: Mapping[str, Any]


def judged_of(each: Iterable[Each]) -> Judged:
    """What `judge` returns, of examples in any order; the references are their weights."""
    ordered = sorted(each, key=lambda one: _place(one.id))
    losses, weights = np.array([one.loss for one in ordered]), np.array([one.weight for one in ordered])
    by_loss = np.nan_to_num(losses, nan=np.inf)
    worst = heapq.nlargest(NUM_WORST, range(len(ordered)), key=lambda index: (by_loss[index], ordered[index].id))
    return Judged(
        ids=[one.id for one in ordered],
        groups=np.unique(np.array([one.group for one in ordered], dtype=np.uint64), return_inverse=True)[1],
        weights=weights,
        outputs=np.stack([one.outputs for one in ordered]),
        references=weights,
        loss=float(losses @ weights / weights.sum()),
        losses=losses,
        worst=[Worst(index, ordered[index].shown) for index in worst],
    )


def group_of(example: Example) -> int:
    """Where nothing is said of groups each example is one."""
    group = None if example.origin is None else example.origin.group
    return derive_seed("one example", example.id) if group is None else group


def _place(example_id: str) -> list[int]:
    """By which ids are in the order of the files: shard, number."""
    return [int(number) for number in re.findall(r"\d+", example_id)]
