"""Files of rows as shards, of one format or each of its own, local or of the hub."""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath
from typing import TypeVar

from hf_accum.data.dataset_files import stamp_of
from hf_accum.data.formats.csv_form import Quoting
from hf_accum.data.formats.row_files import RowFile, format_of, open_rows
from hf_accum.data.formats.rows import BadRow, Row
from hf_accum.data.retries import retried
from hf_accum.errors import OF_THE_PROGRAM, UserError, first_line, shortened

T = TypeVar("T")


@dataclass(frozen=True)
class OpenedFiles:
    """What a `Source` is made of. `read(file, start)` gives the rows of a file from a number on."""

    read: Callable[[str, int], Iterator[tuple[int, Row | BadRow]]]
    class_names: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]
    num_quoted_lines: Callable[[str], int]
    """Of a file, once it was read to its end."""


def open_files(
    dataset: str,
    files: Sequence[str],
    columns: Sequence[str],
    quoting: Quoting,
    class_names: Mapping[str, tuple[str, ...]],
    format_: str | None = None,
    separator: str | None = None,
) -> OpenedFiles:
    """Files of rows, a shard each, of one format or each of its own.

    The first one is opened at once, and so are others that are local; those of the hub when they are read.
    """
    common = common_folder(files)
    names = tuple(os.path.relpath(file, common) for file in files)

    @cache
    def rows_of(file: str) -> RowFile:
        return open_rows(file, format_ or str(format_of(file)), columns, quoting, separator)

    said: defaultdict[str, list[str]] = defaultdict(list)
    for shard, file in enumerate(files):
        if shard and stamp_of(file) is None:
            continue
        try:
            rows = _with_retries(names[shard], file, lambda file=file: rows_of(file))
        except OF_THE_PROGRAM:
            raise
        except UserError as error:
            raise UserError(f"dataset {dataset!r}: {names[shard]}: {error}") from error
        except Exception as error:
            raise UserError(f"dataset {dataset!r}: {names[shard]} cannot be read ({first_line(error)})") from error
        rows.check_columns(columns, f"dataset {dataset!r} {f'in {file} ' if len(files) > 1 else ''}")
        class_names = class_names if shard else {**rows.class_names, **class_names}
        for note in rows.notes:
            said[note].append(names[shard])
    notes = [f"{shortened(', '.join(of), 200)}: {note}" for note, of in said.items()]
    if len(of_format := Counter(format_ or str(format_of(file)) for file in files)) > 1:
        notes.append(
            "files of several formats are read as one: " + ", ".join(f"{n} {f}" for f, n in of_format.items())
        )
    return OpenedFiles(
        lambda file, start: rows_of(file).read(start),
        class_names,
        tuple(notes),
        lambda file: rows_of(file).num_quoted_lines(),
    )


def common_folder(files: Sequence[str]) -> str:
    """The one below which all of them lie: messages call them by their paths in there."""
    return os.path.commonpath([str(PurePosixPath(file).parent) for file in files])


def _with_retries(name: str, file: str, open_: Callable[[], T]) -> T:
    """What `open_()` gives, which is called again where the file is on a network that fails."""
    if "://" not in file:
        return open_()
    return next(retried(name, lambda _: iter([(0, open_())]), 0))[1]
