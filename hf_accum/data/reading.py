"""Reading a dataset ahead, in a background thread: rows in their order, prepared and tokenised, piece by piece."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Generic, TypeVar

from hf_accum.accumulation.example import Example
from hf_accum.data.mixed_order import MixedOrder
from hf_accum.data.shuffling import START, Order, Place
from hf_accum.data.stream_state import StreamState
from hf_accum.distributed.ranks import Ranks
from hf_accum.errors import UserError

T = TypeVar("T")

_ENCODE_CHUNK = 64  # examples tokenised at once in `shards`
EMPTY = "the dataset has no usable example"


@dataclass(frozen=True)
class PieceOfData:
    """What the background thread hands over: examples of this rank, and what ends with them."""

    epoch: int
    examples: tuple[Example, ...]
    bad_rows: Counter[str]  # read since the piece before
    places: Sequence[Place]  # in `shards` after each example, in `examples` the one after the window
    window_size: int = 0  # in `examples`: of the whole window, over all ranks
    ends_epoch: bool = False


@dataclass(frozen=True)
class Reader(Generic[T]):
    """Reads the epochs of a stream that are left behind its start, for this rank.

    `encode` makes examples of (id, prepared row)s; `draw` draws what is random in one, in an epoch.
    """

    order: Order[T] | MixedOrder[T]
    encode: Callable[[Sequence[tuple[str, T]]], list[Example]]
    draw: Callable[[Example, int], Example] | None
    ranks: Ranks
    effective_batch_size: int
    num_epochs: int | None
    start: StreamState

    def windows(self) -> Iterator[PieceOfData]:
        """This rank's share of each window of the common order."""
        epochs = (epoch for epoch, _ in self.epochs())
        for epoch, first, blocks in self.order.passes(epochs, self.start.place):
            bad_rows: Counter[str] = Counter()
            window: list[tuple[int, tuple[str, T]]] = []  # each with the pass over its dataset
            is_empty = not self.was_begun(epoch)
            place = first
            after_last: Counter[str] = Counter()  # they are no part of the last window, behind which a run may go on
            for block in blocks:
                if not block.items:
                    after_last = block.bad_rows
                    break
                bad_rows += block.bad_rows
                for taken in range(block.skipped, len(block.items)):
                    is_empty = False
                    window.append((block.epoch, block.items[taken]))
                    if len(window) == self.effective_batch_size:
                        place = block.after(taken + 1)
                        yield self._common_piece(epoch, window, _taken(bad_rows), place)
                        window = []
                    elif taken + 1 == len(block.items):
                        place = block.after(taken + 1)
            if window:
                yield self._common_piece(epoch, window, _taken(bad_rows), place)
            if is_empty:
                raise UserError(EMPTY)
            yield PieceOfData(epoch, (), after_last, (), ends_epoch=True)

    def _common_piece(
        self, epoch: int, window: list[tuple[int, tuple[str, T]]], bad_rows: Counter[str], place: Place
    ) -> PieceOfData:
        mine = _distinct(window)[self.ranks.index :: self.ranks.count]
        examples = self._encoded([item for _, item in mine], [own for own, _ in mine]) if mine else ()
        return PieceOfData(epoch, examples, bad_rows, (place,), window_size=len(window))

    def shards(self) -> Iterator[PieceOfData]:
        """The examples of this rank's own shards, in chunks."""
        epochs = (epoch for epoch, _ in self.epochs())
        for epoch, _, blocks in self.order.passes(epochs, self.start.place):
            bad_rows: Counter[str] = Counter()
            for block in blocks:
                bad_rows += block.bad_rows
                for start in range(block.skipped, len(block.items), _ENCODE_CHUNK):
                    chunk = block.items[start : start + _ENCODE_CHUNK]
                    places = [block.after(taken) for taken in range(start + 1, start + len(chunk) + 1)]
                    yield PieceOfData(epoch, self._encoded(chunk, [epoch] * len(chunk)), _taken(bad_rows), places)
            yield PieceOfData(epoch, (), _taken(bad_rows), (), ends_epoch=True)

    def epochs(self) -> Iterable[tuple[int, Place]]:
        """The epochs that are left, each with the place where its reading begins."""
        first = self.start.place
        epochs = count(first.epoch) if self.num_epochs is None else range(first.epoch, self.num_epochs)
        return ((epoch, first if epoch == first.epoch else START) for epoch in epochs)

    def was_begun(self, epoch: int) -> bool:
        """Whether an earlier stream has used examples of the epoch."""
        return self.start.step > 0 and epoch == self.start.place.epoch

    def _encoded(self, rows: Sequence[tuple[str, T]], epochs: Sequence[int]) -> tuple[Example, ...]:
        examples = self.encode(rows)
        return tuple(examples if self.draw is None else map(self.draw, examples, epochs))


def _distinct(window: list[tuple[int, tuple[str, T]]]) -> list[tuple[int, tuple[str, T]]]:
    """A window in which a row that a small dataset gives more than once has another id the second time."""
    seen: Counter[str] = Counter()
    found: list[tuple[int, tuple[str, T]]] = []
    for epoch, (example_id, prepared) in window:
        seen[example_id] += 1
        number = seen[example_id]
        found.append((epoch, (example_id if number == 1 else f"{example_id}#{number}", prepared)))
    return found


def _taken(counter: Counter[str]) -> Counter[str]:
    taken = Counter(counter)
    counter.clear()
    return taken
