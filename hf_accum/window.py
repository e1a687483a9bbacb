"""The window: the examples of one optimizer step, and how they are cut into micro-batches.

A window is defined by which examples it holds over all ranks. How it is cut is free and never changes its
gradient:

    g = (1 / W) * sum over items i of  w_i * grad loss_i,        W = sum of w_i over all ranks

W is counted before the first forward. `accelerate`'s backward divides by the number of micro-batches on this
rank, and data-parallel training averages over the ranks, so each micro-batch's summed loss is multiplied by

    scale = num_micro_batches * num_ranks / W
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from hf_accum.seeding import derive_seed


@dataclass(frozen=True)
class Example:
    """One example, ready for a batch.

    `length` is in tokens, `weight` that of its items, `features` what its batch is made of.
    `num_truncated_tokens` were cut off to keep to the longest length allowed.
    """

    id: str
    length: int
    weight: float
    features: Mapping[str, Any]
    num_truncated_tokens: int = 0


@dataclass(frozen=True)
class MicroBatch:
    """The examples of one forward on this rank; `index` of `count` within the window.

    Multiply the summed loss by `scale` before the backward. It is 0 in the micro-batch that a rank without
    examples runs so that the others do not wait for its gradient.
    """

    examples: tuple[Example, ...]
    index: int
    count: int
    scale: float
    seed: int


@dataclass
class Window:
    """One optimizer step. Counts and `digest` are over all ranks, `examples` are this rank's own.

    `stand_in` is what a rank without examples computes with weight zero. The outcome of the step (losses,
    padding) is collected here while it runs.
    """

    step: int
    epoch: int
    seed: int
    examples: tuple[Example, ...]
    stand_in: Example
    rank: int
    num_ranks: int
    num_examples: int
    num_items: float
    num_tokens: int
    digest: str
    num_micro_batches: int = field(default=0, init=False)
    num_padded_tokens: int = field(default=0, init=False)
    _losses: list[Tensor] = field(default_factory=list, init=False, repr=False)

    def micro_batches(self, micro_batch_size: int) -> Iterator[MicroBatch]:
        """This rank's micro-batches: at most `micro_batch_size` examples each, of similar length."""
        pieces = cut(self.examples, micro_batch_size) or [(self.stand_in,)]
        scale = len(pieces) * self.num_ranks / self.num_items if self.examples else 0.0
        self.num_micro_batches = len(pieces) if self.examples else 0
        self.num_padded_tokens = sum(len(p) * max(e.length for e in p) for p in pieces) if self.examples else 0
        self._losses.clear()
        for index, piece in enumerate(pieces):
            seed = derive_seed(self.seed, "micro-batch", self.rank, index)
            yield MicroBatch(piece, index, len(pieces), scale, seed)

    def record(self, loss: Tensor) -> None:
        """Take note of a micro-batch's summed loss, without waiting for the device."""
        if self.examples:
            self._losses.append(loss.detach())

    def loss_sum(self) -> Tensor | float:
        """This rank's part of the window's summed loss, on the device."""
        return sum(self._losses[1:], start=self._losses[0]) if self._losses else 0.0


def cut(examples: Sequence[Example], micro_batch_size: int) -> list[tuple[Example, ...]]:
    """Cut examples into micro-batches of at most `micro_batch_size`, longest first.

    Sorted by length, so that little is padded. The result depends on the examples only, not on their order.

    Raises:
        ValueError: for a size below 1.
    """
    if micro_batch_size < 1:
        raise ValueError(f"micro-batch size {micro_batch_size}: has to be at least 1")
    ordered = sorted(examples, key=lambda example: (-example.length, example.id))
    return [tuple(ordered[start : start + micro_batch_size]) for start in range(0, len(ordered), micro_batch_size)]
