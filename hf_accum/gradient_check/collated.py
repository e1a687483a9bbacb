"""The examples of a task as rows: batches are collated of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_accum.accumulation.example import Example

Collate = Callable[[Sequence[Example], int], Any]
SummedLoss = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Piece:
    """Some examples: what was collated of them, and what they weigh."""

    batch: Any
    num_examples: int
    weight: float


def of_piece(summed_loss: SummedLoss) -> SummedLoss:
    """A loss of what was collated as one of pieces."""
    return lambda model, piece: summed_loss(model, piece.batch)


class CollatedRows:
    """As `Rows` are. Examples that do not vary in length (images) are not padded; `most_length` is the model's."""

    is_left = False

    def __init__(self, examples: Sequence[Example], collate: Collate, *, vary: bool, most_length: int) -> None:
        self._examples, self._collate = examples, collate
        self.num_examples = len(examples)
        self.lengths = [example.length for example in examples]
        self._length = max(self.lengths)
        self.cannot_pad = "" if vary else "the examples all have one size"
        self.room = max(0, min(7, most_length - self._length)) if vary else 0

    def _of(self, places: Sequence[int], length: int) -> Piece:
        chosen = [self._examples[place] for place in places]
        return Piece(self._collate(chosen, length), len(chosen), sum(example.weight for example in chosen))

    def batch(self, places: Sequence[int]) -> Piece:
        """See `Rows`."""
        return self._of(places, self._length)

    def padded(self, extra: int) -> Piece:
        """See `Rows`."""
        return self._of(range(self.num_examples), self._length + extra)

    def alone(self, place: int) -> Piece:
        """See `Rows`."""
        return self._of([place], self.lengths[place])

    def real(self) -> Tensor:
        """See `Rows`."""
        return torch.arange(self._length) < torch.tensor(self.lengths)[:, None]

    def weight(self, batch: Piece) -> float:
        """See `Rows`."""
        return batch.weight

    def counts(self, batch: Piece) -> dict[str, float]:
        """See `Rows`."""
        return {"examples": float(batch.num_examples), "weights of the examples": batch.weight}

    def short(self) -> Iterator[tuple[str, Piece]]:
        """See `Rows`: the shortest example of all."""
        if not self.cannot_pad:
            yield (
                f"the shortest text, of {min(self.lengths)} tokens",
                self.alone(self.lengths.index(min(self.lengths))),
            )
