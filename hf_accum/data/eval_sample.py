"""A fixed sample of the held-out rows, where all of them would take too long."""

import heapq
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal, TypeVar

from hf_accum.data.source import BadRow, Row, Source, good_rows
from hf_accum.distributed.collectives import on_all_ranks
from hf_accum.distributed.ranks import Ranks
from hf_accum.seeding import derive_seed

T = TypeVar("T")


def sample_rows(
    source: Source,
    prepare: Callable[[Row], T | None],
    most: int,
    ranks: Ranks,
    on_bad_row: Literal["error", "skip"],
) -> tuple[Source, int]:
    """A source of so many of the rows that `prepare` keeps, and how many it keeps in all. A collective.

    Which ones says a hash of their places, and nothing else: they are the same for every seed, on any number of
    ranks. A row that is cut into parts counts once, with all of them. Reads everything once.

    Raises:
        UserError: for a bad row, unless they are skipped.
    """

    def mine() -> tuple[list[tuple[int, int, int]], int]:
        smallest: list[tuple[int, int, int]] = []  # the largest first, negated
        num_rows, last = 0, (-1, -1)
        for shard in range(ranks.index, source.num_shards, ranks.count):
            for number, _ in good_rows(source, shard, 0, prepare, on_bad_row, Counter()):
                place = (shard, number // source.parts_per_row)
                if place == last:
                    continue
                last, num_rows = place, num_rows + 1
                entry = (-derive_seed("sample", *place), *place)
                if len(smallest) < most:
                    heapq.heappush(smallest, entry)
                else:
                    heapq.heappushpop(smallest, entry)
        return smallest, num_rows

    of_ranks = on_all_ranks(ranks, mine)
    chosen = heapq.nlargest(most, (entry for entries, _ in of_ranks for entry in entries))
    kept = {(shard, row) for _, shard, row in chosen}
    lasts = [max((row for of, row in kept if of == shard), default=-1) for shard in range(source.num_shards)]

    def read(shard: int, start: int) -> Iterator[tuple[int, Row | BadRow]]:
        if start // source.parts_per_row > lasts[shard]:
            return
        for number, row in source.read(shard, start):
            of_row = number // source.parts_per_row
            if of_row > lasts[shard]:
                return
            if (shard, of_row) in kept:
                yield number, row

    return replace(source, read=read), sum(number for _, number in of_ranks)
