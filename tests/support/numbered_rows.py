"""Rows that are known by shard and number, and a stream of them."""

from collections.abc import Iterator, Sequence
from typing import Any

from thread_ranks import ThreadRanks, on_ranks

from hf_accum.accumulation.example import Example
from hf_accum.accumulation.window import Window
from hf_accum.data.source import BadRow, Row, Source
from hf_accum.data.stream import WindowStream
from hf_accum.distributed.ranks import Ranks

ShardSizes = Sequence[int]


def source_of(shard_sizes: ShardSizes, bad: frozenset[str] = frozenset()) -> Source:
    """Shards of rows {"value": "shard:row"}; a bad row has no value."""

    def read(shard: int, start: int) -> Iterator[tuple[int, Row | BadRow]]:
        for row in range(start, shard_sizes[shard]):
            name = f"{shard}:{row}"
            yield row, {} if name in bad else {"value": name}

    return Source(tuple(f"file-{i}" for i in range(len(shard_sizes))), read, {})


def prepare(row: Row) -> str:
    if "value" not in row:
        raise BadRow("value", "missing")
    return row["value"]


def encode(rows: Sequence[tuple[str, str]]) -> list[Example]:
    """The row's number is its length; ids and rows have to stay together."""
    assert all(example_id == value for example_id, value in rows)
    numbers = [int(value.partition(":")[2]) for _, value in rows]
    return [Example(i, n + 1, 1.0 + n, {}, n % 2) for (i, _), n in zip(rows, numbers, strict=True)]


def make_stream(source: Source, ranks: Ranks, effective_batch_size: int, **how: Any) -> WindowStream[str]:
    how = {"seed": 0, "num_epochs": 1, "shuffle_block_size": 7} | how
    return WindowStream(source, prepare, encode, ranks=ranks, effective_batch_size=effective_batch_size, **how)


def windows_of_ranks(
    shard_sizes: ShardSizes, num_ranks: int, effective_batch_size: int, **how: Any
) -> list[list[Window]]:
    """The windows of each rank."""

    def work(ranks: ThreadRanks) -> list[Window]:
        return list(make_stream(source_of(shard_sizes), ranks, effective_batch_size, **how))

    outcomes = on_ranks(num_ranks, work)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    return outcomes  # type: ignore[return-value]
