"""What an item is, what it weighs, and its loss, summed.

A loss here returns a **sum** over the items of a micro-batch, never a mean: only the window knows how many
items there are, and divides once. The weight of the items is known from the labels alone, before any forward.
All losses are computed from logits, in float32 at least; the model is handed no labels.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_accum.errors import UserError

IGNORE = -100
"""A label that counts for nothing, as in transformers."""


class Objective(Protocol):
    """A loss that is a weighted sum over items."""

    def weight(self, labels: Tensor) -> float:
        """The summed weight of the items in `labels`; what the window divides by is the sum of these."""
        ...

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The weighted sum of the items' losses, a scalar in float32 (float64 for float64 logits)."""
        ...


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


@dataclass(frozen=True, eq=False)
class CrossEntropy:
    """Cross-entropy over classes: one item per label that is not ignored.

    Logits have shape (..., num_classes), integer labels the shape (...): examples, or tokens of examples.
    Divided by its `weight` it is what `torch.nn.functional.cross_entropy(reduction="mean")` computes over the
    whole window: with class weights the denominator is the sum of the labels' weights, with label smoothing
    too.

    Raises:
        UserError: for weights that are not positive and finite, or a smoothing outside [0, 1).

    >>> import torch
    >>> from hf_accum import CrossEntropy
    >>> loss, labels = CrossEntropy(), torch.tensor([0, 1, -100])
    >>> float(loss(torch.zeros(3, 2), labels)), loss.weight(labels)  # two times log 2
    (1.3862943649291992, 2.0)
    """

    class_weights: Tensor | None = None
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label smoothing {self.label_smoothing}: has to be in [0, 1)")
        _check_positive("class weights", self.class_weights)

    def weight(self, labels: Tensor) -> float:
        """The number of labels that are not ignored, or the sum of their class weights."""
        kept = labels[labels != IGNORE]
        if self.class_weights is None:
            return float(kept.numel())
        return float(self.class_weights.double()[kept].sum())

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The summed cross-entropy."""
        logits = _at_least_float32(logits)
        weights = None if self.class_weights is None else self.class_weights.to(logits, non_blocking=True)
        return F.cross_entropy(
            logits.reshape(-1, logits.shape[-1]),
            labels.reshape(-1),
            weight=weights,
            ignore_index=IGNORE,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )


@dataclass(frozen=True, eq=False)
class BinaryCrossEntropy:
    """Multi-label classification: one item per (example, label) pair that is not ignored.

    Logits and float labels in [0, 1] have shape (num_examples, num_labels). `positive_weights`, one for each
    label, multiply the loss where the label is 1 and leave the denominator alone, as in
    `torch.nn.functional.binary_cross_entropy_with_logits(reduction="mean")`.

    >>> import torch
    >>> from hf_accum import BinaryCrossEntropy
    >>> loss, labels = BinaryCrossEntropy(), torch.tensor([[1.0, 0.0], [1.0, -100.0]])
    >>> round(float(loss(torch.zeros(2, 2), labels)), 4), loss.weight(labels)  # three times log 2
    (2.0794, 3.0)
    """

    positive_weights: Tensor | None = None

    def __post_init__(self) -> None:
        _check_positive("positive weights", self.positive_weights)

    def weight(self, labels: Tensor) -> float:
        """The number of pairs that are not ignored."""
        return float((labels != IGNORE).sum())

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The summed binary cross-entropy."""
        logits = _at_least_float32(logits)
        kept = labels != IGNORE
        return F.binary_cross_entropy_with_logits(
            logits,
            labels.to(logits).masked_fill(~kept, 0.0),
            weight=kept.to(logits),
            pos_weight=None if self.positive_weights is None else self.positive_weights.to(logits, non_blocking=True),
            reduction="sum",
        )


@dataclass(frozen=True)
class SquaredError:
    """Regression: one item per predicted number; logits (num_examples, 1), labels (num_examples,).

    >>> import torch
    >>> from hf_accum import SquaredError
    >>> SquaredError()(torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 1.0]))
    tensor(5.)
    """

    def weight(self, labels: Tensor) -> float:
        """The number of targets."""
        return float(labels.numel())

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The summed squared error."""
        logits = _at_least_float32(logits)
        return F.mse_loss(logits.reshape(labels.shape), labels.to(logits), reduction="sum")


def _check_positive(what: str, weights: Tensor | None) -> None:
    if weights is not None and not bool(((weights > 0) & weights.isfinite()).all()):
        raise UserError(f"{what} {weights.tolist()}: each has to be a finite number above 0")
