"""What is checked while rows are read: that files stay as they are, and that passes are alike."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from hf_accum.data.dataset_files import Stamp
from hf_accum.data.formats.rows import BadRow, Row
from hf_accum.errors import OF_THE_PROGRAM, UserError, first_line

Read = Callable[[int, int], Iterator[tuple[int, Row | BadRow]]]
"""Of a shard, from a row on."""


def checked(names: Sequence[str], read: Read, stamps: Mapping[int, Mapping[str, Stamp]]) -> Read:
    """`read` of files, whose errors name the file and the last good row, and which have to stay as they were."""

    def check(shard: int) -> None:
        for name, stamp in stamps.get(shard, {}).items():
            stamp.check(name)

    def reading(shard: int, start: int) -> Iterator[tuple[int, Row | BadRow]]:
        check(shard)
        last = start
        try:
            for number, row in read(shard, start):
                last = number + 1
                yield number, row
        except OF_THE_PROGRAM:
            raise
        except UserError as error:  # of the whole file
            raise UserError(f"{names[shard]}: {error}") from error
        except Exception as error:
            check(shard)  # rather this than what came of it
            after = f" after row {last}" if last > start else ""
            raise UserError(f"{names[shard]}: cannot be read{after} ({first_line(error)})") from error
        check(shard)

    return reading


def of_equal_passes(names: Sequence[str], read: Read) -> Read:
    """`read`, whose whole passes over a shard have to have equally many rows."""
    num_rows: dict[int, int] = {}

    def counted(shard: int, start: int) -> Iterator[tuple[int, Row | BadRow]]:
        end = start
        for number, row in read(shard, start):
            end = number + 1
            yield number, row
        if (start == 0 or end > start) and num_rows.setdefault(shard, end) != end:
            raise UserError(
                f"{names[shard]}: has {end} rows now, and had {num_rows[shard]} before: each pass has to see the "
                "same dataset"
            )

    return counted
