"""The same rows for any number of ranks, whole rows, no more than asked for, and found by a plain sort."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from thread_ranks import run_ranks

from hf_accum.data.eval_sample import sample_rows
from hf_accum.data.source import BadRow, Row, Source, in_parts
from hf_accum.distributed.ranks import OneRank
from hf_accum.errors import UserError
from hf_accum.seeding import derive_seed


def source_of(sizes: list[int]) -> Source:
    def read(shard: int, start: int) -> Any:
        return iter([(n, {"x": n, "shard": shard}) for n in range(start, sizes[shard])])

    return Source(tuple(map(str, range(len(sizes)))), read, {})


def wanted(row: Row) -> Row | None:
    return row if row["x"] % 3 else None


def places(source: Source) -> list[tuple[int, int]]:
    return [(shard, number) for shard in range(source.num_shards) for number, _ in source.read(shard, 0)]


@settings(max_examples=20)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=4), st.integers(1, 30), st.integers(1, 3))
def test_the_rows_of_the_smallest_hashes(sizes: list[int], most: int, num_ranks: int) -> None:
    everyone = run_ranks(num_ranks, lambda ranks: sample_rows(source_of(sizes), wanted, most, ranks, "error"))
    there = [(shard, n) for shard, size in enumerate(sizes) for n in range(size) if n % 3]
    expected = sorted(sorted(there, key=lambda place: derive_seed("sample", *place))[:most])
    for sampled, number in everyone:
        assert number == len(there)
        assert places(sampled) == expected
        assert [n for n, _ in sampled.read(0, 5)] == [n for shard, n in expected if shard == 0 and n >= 5]


def test_a_row_that_is_cut_into_parts_counts_once_with_all_of_them() -> None:
    cut = in_parts(source_of([10]), lambda row: [row] * (1 + row["x"] % 3), 4)
    sampled, number = sample_rows(cut, lambda row: row, 3, OneRank(), "error")
    assert number == 10
    rows = Counter(n // 4 for _, n in places(sampled))
    assert len(rows) == 3
    assert all(count == 1 + row % 3 for row, count in rows.items())


def test_a_bad_row_is_named_or_left_out() -> None:
    def prepare(row: Row) -> Row:
        if row["x"] == 3:
            raise BadRow("x", "is three")
        return row

    with pytest.raises(UserError, match="0, row 4: field 'x': is three"):
        sample_rows(source_of([10]), prepare, 3, OneRank(), "error")
    sampled, number = sample_rows(source_of([10]), prepare, 9, OneRank(), "skip")
    assert (number, len(places(sampled))) == (9, 9)
