"""A file of rows, by its format: its columns, its rows from any number on, what is to be said of it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from hf_accum.data.formats.csv_form import Quoting, form_of
from hf_accum.data.formats.csv_rows import CsvRows
from hf_accum.data.formats.excel import open_excel
from hf_accum.data.formats.opening import head_of, opened, suffix_of
from hf_accum.data.formats.rows import BadRow, NoSuchColumn, Row, is_array, read_json, read_parquet
from hf_accum.errors import shortened

FORMATS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".xlsx": "excel",
}
"""By the suffix of a file's name, in front of that of its compression."""

_LOOKED_AT = 20  # rows of JSON lines, for their columns


@dataclass(frozen=True)
class RowFile:
    """A file of rows. `columns` is empty where they are not known without reading all of it."""

    read: Callable[[int], Iterator[tuple[int, Row | BadRow]]]
    columns: tuple[str, ...] = ()
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    num_quoted_lines: Callable[[], int] = lambda: 0
    """How many lines lie within quoted fields, once it was read to its end."""

    def check_columns(self, columns: Sequence[str], where: str) -> None:
        """Refuse a file that lacks a column; `where` is what the message begins with.

        Raises:
            NoSuchColumn: naming the column and those that there are.
        """
        for column in columns if self.columns else ():
            if column not in self.columns:
                has = shortened(", ".join(map(str, self.columns)), 300)
                raise NoSuchColumn(f"{where}has no column {column!r}: it has {has}", column)


def format_of(file: str) -> str | None:
    """The format of a file of rows; None for other files."""
    return FORMATS.get(suffix_of(file))


def open_rows(
    file: str, format_: str, columns: Sequence[str] = (), quoting: Quoting = "auto", separator: str | None = None
) -> RowFile:
    """Open a file, of which no other columns are needed; `separator` is that of CSV, where it is known.

    Raises:
        UserError: if it cannot be used.
        Exception: as files fail that are broken.
    """
    match format_:
        case "csv":
            rows = CsvRows(file, form_of(file, quoting, separator))
            notes = rows.form.notes
            return RowFile(rows.read, rows.form.names, {}, notes, lambda: rows.num_quoted_lines)
        case "excel":
            sheet = open_excel(file)
            return RowFile(sheet.read, sheet.names, {}, sheet.notes)
        case "parquet":
            names, class_names = _parquet_schema(file)
            return RowFile(lambda start: read_parquet(file, start, columns), names, class_names)
        case _:
            return RowFile(lambda start: read_json(file, start), _json_columns(file))


def _json_columns(file: str) -> tuple[str, ...]:
    """All that the first objects have; none for an array, which would have to be read whole."""
    if is_array(head_of(file)):
        return ()
    rows = (row for _, row in islice(read_json(file, 0), _LOOKED_AT) if not isinstance(row, BadRow))
    return tuple(dict.fromkeys(name for row in rows for name in row))


def _parquet_schema(file: str) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    import pyarrow.parquet as pq
    from datasets import Features

    with opened(file, "rb") as raw:
        schema = pq.read_schema(raw)
    return tuple(schema.names), class_names_of(Features.from_arrow_schema(schema))


def class_names_of(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Of columns of classes, and of lists of them."""
    items = {name: getattr(feature, "feature", feature) for name, feature in features.items()}
    return {name: tuple(item.names) for name, item in items.items() if hasattr(item, "names")}
