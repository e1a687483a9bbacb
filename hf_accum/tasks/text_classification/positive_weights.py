"""Weights of labels that few examples have, by how many have them."""

from collections.abc import Mapping, Sequence
from typing import Literal

from hf_accum.errors import UserError, shortened

_MUCH = 100.0


def balanced_positive_weights(
    names: Sequence[str], label_counts: Mapping[str, int], num_examples: int
) -> list[float]:
    """Of each label the number of examples without it over that of those with it: both sides weigh the same.

    Raises:
        UserError: for a label that no example has, or each one.
    """
    positives = [label_counts.get(name, 0) for name in names]
    for what, number in (("no row", 0), ("every row", num_examples)):
        if found := [name for name, count in zip(names, positives, strict=True) if count == number]:
            raise UserError(
                f"`positive_weights` balanced: {what} to train on has the label {shortened(', '.join(found), 200)}; "
                "give the weights as numbers, or leave the label out"
            )
    return [(num_examples - count) / count for count in positives]


def notes_of_weights(
    names: Sequence[str],
    positive_weights: Literal["balanced"] | Sequence[float],
    label_counts: Mapping[str, int],
    num_examples: int,
) -> list[str]:
    """Which of the balanced weights are so large that one example can outweigh a window."""
    if positive_weights != "balanced":
        return []
    weights = balanced_positive_weights(names, label_counts, num_examples)
    large = [f"{name} {weight:,.0f}" for name, weight in zip(names, weights, strict=True) if weight > _MUCH]
    return [f"positive weights above {_MUCH:.0f}: {shortened(', '.join(large), 200)}"] if large else []
