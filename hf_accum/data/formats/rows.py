"""Rows of single files: JSON lines, CSV, Parquet, each row by itself, so that a bad one is bad alone."""

import codecs
import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import fsspec

from hf_accum.errors import UserError, first_line, shortened

Row = Mapping[str, Any]


class BadRow(UserError):
    """A row that cannot be used: which field, and why."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"field {field!r}: {reason}" if field else reason)
        self.field = field
        self.reason = reason


class BadColumn(BadRow):
    """A row that shows that a whole column is meant otherwise: to mend or leave out rows would not help."""


def value_of(row: Mapping[str, Any], column: str) -> Any:
    """A row's value in a column.

    Raises:
        BadRow: if there is no such column.
    """
    if column not in row:
        raise BadRow(column, f"no such column; the row has {shortened(', '.join(map(str, row)), 300) or 'none'}")
    return row[column]


def is_missing(value: Any) -> bool:
    """Whether a value is none: null, or NaN, as pandas writes it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def check_unicode(column: str, text: str) -> None:
    """See that a text can be written, and taken by a tokenizer.

    Raises:
        BadRow: if a lone surrogate stands in it.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRow(column, "not UTF-8 (a lone surrogate)") from None


def opened(file: str, mode: str, **how: Any) -> AbstractContextManager[Any]:
    """A file for reading, local or of a hub."""
    if "://" not in file:  # a path as it is: fsspec would take a part of some for a protocol
        return fsspec.filesystem("file").open(file, mode, **how)
    return fsspec.open(file, mode, **how)  # type: ignore[return-value] (fsspec leaves open which)


def read_json(file: str, start: int) -> Iterator[tuple[int, Row | BadRow]]:
    """The rows of a file of JSON lines, or of one JSON array, from a number on."""
    with opened(file, "rb", compression="infer") as lines:
        first = lines.read(64).removeprefix(codecs.BOM_UTF8).lstrip()
        lines.seek(0)
        if first.startswith(b"["):  # one JSON array: it has to be read whole
            for number, value in enumerate(json.load(lines)):
                if number >= start:
                    yield number, _json_row(value)
            return
        for number, line in enumerate(lines):
            if number < start or not line.strip():
                continue
            try:
                yield number, _json_row(json.loads(line.decode("utf-8-sig" if number == 0 else "utf-8")))
            except UnicodeDecodeError as error:
                yield number, BadRow("", f"not UTF-8 (byte {error.start + 1} of the line)")
            except json.JSONDecodeError as error:
                yield number, BadRow("", f"not JSON ({error.msg}, column {error.colno})")
            except (ValueError, RecursionError) as error:  # numbers too long, brackets too deep
                yield number, BadRow("", f"not JSON that can be read ({first_line(error)})")


def _json_row(value: Any) -> Row | BadRow:
    return value if isinstance(value, dict) else BadRow("", f"a JSON {type(value).__name__}, not an object")


def read_csv(file: str, start: int, separator: str) -> Iterator[tuple[int, Row | BadRow]]:
    """The rows of a CSV file, from a number on, each value a text."""
    csv.field_size_limit(2**31 - 1)  # clinical notes are longer than the 128 KiB that csv allows
    # Bytes that are not UTF-8 come through as lone surrogates, so that only their own row is bad.
    how = {"encoding": "utf-8-sig", "errors": "surrogateescape", "newline": ""}
    with opened(file, "rt", compression="infer", **how) as lines:
        header = next(filter(None, csv.reader(lines, delimiter=separator)), [])  # blank lines are no rows
        if len(set(header)) < len(header):
            raise UserError(f"two columns have the same name: {', '.join(header)}")
        reader = csv.DictReader(lines, header, delimiter=separator, restkey="", restval=None)
        for number, row in enumerate(reader):
            if number >= start:
                yield number, _csv_row(row)


def _csv_row(row: dict[str, Any]) -> Row | BadRow:
    if "" in row and isinstance(row[""], list):
        return BadRow("", f"{len(row[''])} more fields than the header")
    for field, value in row.items():
        if value is None:
            return BadRow(field, "missing: the row has fewer fields than the header")
        if any("\udc80" <= character <= "\udcff" for character in value):
            return BadRow(field, "not UTF-8")
    return row


def read_parquet(file: str, start: int, columns: Sequence[str]) -> Iterator[tuple[int, Row | BadRow]]:
    """The rows of a Parquet file, from a number on, with no other columns than these (where it has one of them)."""
    import pyarrow.parquet as pq

    with opened(file, "rb") as raw, pq.ParquetFile(raw) as parquet:
        present = parquet.schema_arrow.names
        wanted = [name for name in columns if name in present] or None
        number = 0
        for group in range(parquet.num_row_groups):
            group_rows = parquet.metadata.row_group(group).num_rows
            if number + group_rows <= start:
                number += group_rows
                continue
            for batch in parquet.iter_batches(batch_size=1024, row_groups=[group], columns=wanted):
                for row in _parquet_rows(batch):
                    if number >= start:
                        yield number, row
                    number += 1


def _parquet_rows(batch: Any) -> list[Row | BadRow]:
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError):
        return [_parquet_row(batch, index) for index in range(batch.num_rows)]


def _parquet_row(batch: Any, index: int) -> Row | BadRow:
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[index].as_py()
        except UnicodeDecodeError:
            return BadRow(name, "not UTF-8")
        except (ValueError, OverflowError) as error:  # a time beyond the calendar
            return BadRow(name, f"cannot be read ({first_line(error)})")
    return row
