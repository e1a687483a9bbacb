"""The order of the data: from seed and pass, within blocks, and from any place on."""

from collections.abc import Iterator
from typing import Any

from numbered_rows import make_stream, windows_of_ranks

from hf_accum.data.source import BadRow, Row, Source
from hf_accum.distributed.ranks import OneRank


def test_order_depends_on_seed_and_epoch_and_stays_within_blocks() -> None:
    def orders(seed: int, **how: Any) -> list[list[str]]:
        windows = windows_of_ranks([30, 30], 1, 60, seed=seed, num_epochs=2, **how)[0]
        return [[e.id for e in window.examples] for window in windows]

    first, again, other = orders(1), orders(1), orders(2)
    assert first == again
    assert first[0] != first[1]
    assert first[0] != other[0]
    in_file_order = orders(1, shuffle_block_size=1)
    assert in_file_order[0] == in_file_order[1] == [f"{s}:{r}" for s in (0, 1) for r in range(30)]
    blocks = orders(1, shuffle_block_size=10)[0]
    for start in range(0, 60, 10):
        block = blocks[start : start + 10]
        assert len({i.partition(":")[0] for i in block}) == 1
        assert len({int(i.partition(":")[2]) // 10 for i in block}) == 1
        assert block != sorted(block, key=lambda i: int(i.partition(":")[2]))


def test_going_on_reads_no_more_than_a_block_again() -> None:
    read: list[int] = []

    def source() -> Source:
        def rows(shard: int, start: int) -> Iterator[tuple[int, Row | BadRow]]:
            for row in range(start, 10_000):
                read.append(row)
                yield row, {"value": f"{shard}:{row}"}

        return Source(("file",), rows, {})

    windows = make_stream(source(), OneRank(), 16, shuffle_block_size=100, prefetch_windows=1)
    states = {window.step: window.state for window in windows}
    for step in (10, 400):
        read.clear()
        stream = make_stream(source(), OneRank(), 16, shuffle_block_size=100, prefetch_windows=1)
        stream.load_state_dict({"ranks": [states[step].as_json()]})
        iterator = iter(stream)
        window = next(iterator)
        iterator.close()  # type: ignore[attr-defined]
        assert window.step == step + 1
        first = (16 * step - 1) // 100 * 100  # of the block in which the window ended
        assert min(read) in (0, first)  # 0: the stand-in, which is the first of the file
        assert len(read) <= 400
