"""The order in which a rank reads a source: passes, shuffled in blocks, from any place on.

Order comes from (seed, epoch, block): the shards are permuted by epoch, read one after the other, and each block of
consecutive examples is permuted by itself. So a place in it is known by where its block begins and how many examples
of the block were used: to go on from there reads no more than that one block again.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from hf_accum.data.skipped_rows import SkippedRows
from hf_accum.data.source import Row, Source, good_rows
from hf_accum.errors import UserError
from hf_accum.seeding import derive_seed

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """After `taken` examples of a block, which begins at a row of a shard (of the epoch's order of shards).

    In several datasets that are mixed: the places in each of them (`parts`), which know how many examples were
    `drawn` of theirs.
    """

    epoch: int = 0
    block: int = 0
    shard: int = 0
    row: int = 0
    taken: int = 0
    drawn: int = 0
    parts: tuple["Place", ...] = ()

    def as_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return asdict(self) | {"parts": [part.as_json() for part in self.parts]}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "Place":
        """The inverse of `as_json`.

        Raises:
            TypeError, ValueError: if the value is no such thing.
        """
        numbers = {name: number for name, number in value.items() if name != "parts"}
        place = Place(**numbers, parts=tuple(Place.from_json(part) for part in value.get("parts", ())))
        if not all(isinstance(number, int) and number >= 0 for number in numbers.values()):
            raise ValueError(f"{value}: no place in a dataset")
        return place


START = Place()


@dataclass(frozen=True)
class Block(Generic[T]):
    """Examples that were shuffled together: (id, prepared row) each, and the bad rows among which they stood.

    `start` is the place before its first example; the first `skipped` of them were used before.
    """

    start: Place
    items: Sequence[tuple[str, T]]
    bad_rows: Counter[str]
    skipped: int = 0

    @property
    def epoch(self) -> int:
        """The pass over the data that it is of."""
        return self.start.epoch

    def after(self, taken: int) -> Place:
        """The place after so many of its examples."""
        start = self.start
        return Place(start.epoch, start.block, start.shard, start.row, taken)


@dataclass(frozen=True)
class Order(Generic[T]):
    """How one rank reads a source: its own shards (`of_ranks`: which of how many ranks it is), or all of them.

    `prepare` makes of a row what is kept of it; None leaves the row out, `BadRow` says what is wrong with it.
    """

    source: Source
    prepare: Callable[[Row], T | None]
    seed: int
    block_size: int
    on_bad_row: Literal["error", "skip"] = "error"
    of_ranks: tuple[int, int] | None = None
    max_skipped_share: float | None = None
    """Of the rows of a pass, the most that may be bad; None: any."""
    shards: range | None = None
    """Of the source's shards those that are read; None: all."""

    def passes(self, epochs: Iterable[int], place: Place) -> Iterator[tuple[int, Place, Iterator[Block[T]]]]:
        """Of each of these epochs its number, the place where its reading begins, and its blocks from there on."""
        for epoch in epochs:
            first = place if epoch == place.epoch else START
            yield epoch, first, self.blocks(epoch, first)

    def blocks(self, epoch: int, place: Place = START) -> Iterator[Block[T]]:
        """The blocks of an epoch, from a place in it on; then, if bad rows follow the last one, one without items.

        Bad rows of the block of the place itself were counted when it was first read, and are not again.

        Raises:
            UserError: for a bad row, unless they are skipped; if too many are.
        """
        skipped_rows = None if self.max_skipped_share is None else SkippedRows(self.max_skipped_share)
        shards = self._shards(epoch)
        number = place.block
        start = Place(epoch, number, place.shard, place.row)
        end = (place.shard, place.row)
        bad_rows: Counter[str] = Counter()
        items: list[tuple[str, T]] = []
        skipped = place.taken

        def block() -> Block[T]:
            if len(items) < skipped:
                raise UserError(
                    f"the dataset has changed: {skipped} examples were used of a block that has {len(items)} now; "
                    "`resume never` starts anew"
                )
            shuffled = [items[i] for i in self._permutation(len(items), "block", epoch, self._owner, number)]
            return Block(start, shuffled, Counter() if skipped else Counter(bad_rows), skipped)

        for index in range(place.shard, len(shards)):
            shard = shards[index]
            first_row = place.row if index == place.shard else 0
            rows = good_rows(self.source, shard, first_row, self.prepare, self.on_bad_row, bad_rows, skipped_rows)
            for row, prepared in rows:
                items.append((f"{shard}:{row}", prepared))
                end = (index, row + 1)
                if len(items) == self.block_size:
                    yield block()
                    number += 1
                    start, items, skipped = Place(epoch, number, *end), [], 0
                    bad_rows.clear()
        if skipped_rows is not None and place == START:
            skipped_rows.check()
        if items or bad_rows:
            yield block()

    @property
    def _owner(self) -> int:
        return 0 if self.of_ranks is None else self.of_ranks[0]

    def _shards(self, epoch: int) -> list[int]:
        shards = list(range(self.source.num_shards) if self.shards is None else self.shards)
        if self.block_size > 1:
            shards = [shards[i] for i in self._permutation(len(shards), "shards", epoch)]
        if self.of_ranks is None:
            return shards
        index, count = self.of_ranks
        return shards[index::count]

    def _permutation(self, size: int, *what: int | str) -> list[int]:
        seed = derive_seed(self.seed, *what)
        return np.random.Generator(np.random.PCG64(seed)).permutation(size).tolist()
