"""Rows of JSON lines and Parquet, each row by itself, so that a bad one is bad alone."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hf_accum.data.formats.opening import content_of, encoding_by, head_of, opened, text_of_file, wrong_encoding
from hf_accum.errors import UserError, first_line, shortened

Row = Mapping[str, Any]


class BadRow(UserError):
    """A row that cannot be used: which field, and why; and the way out, where it is another than to mend the row."""

    def __init__(self, field: str, reason: str, way_out: str = "") -> None:
        super().__init__(f"field {field!r}: {reason}" if field else reason)
        self.field = field
        self.reason = reason
        self.way_out = way_out


class BadColumn(BadRow):
    """A row that shows that a whole column is meant otherwise: to mend or leave out rows would not help."""


class NoSuchColumn(UserError):
    """A file that lacks a column; the message names both."""

    def __init__(self, message: str, column: str) -> None:
        super().__init__(message)
        self.column = column


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


def read_json(file: str, start: int) -> Iterator[tuple[int, Row | BadRow]]:
    """The rows of a file of JSON lines, or of one JSON array, from a number on."""
    head = head_of(file)
    if is_array(head):  # it has to be read whole
        with content_of(file) as content:
            try:
                values = json.load(content)
            except json.JSONDecodeError as error:
                if error.msg != "Extra data":
                    raise
                raise UserError(
                    "begins with a list, and goes on behind it: rows have to be objects, each in a line "
                    "of its own, or all in one list"
                ) from error
        yield from ((number, _json_row(value)) for number, value in enumerate(values) if number >= start)
        return
    for number, line in enumerate(_lines(file, encoding_by(head))):
        if number < start or not line.strip():
            continue
        try:
            yield number, _json_row(json.loads(line.decode("utf-8-sig" if number == 0 else "utf-8")))
        except UnicodeDecodeError as error:
            escaped = line.decode("utf-8", "surrogateescape")
            reason = f"not UTF-8 (byte {error.start + 1} of the line)"
            yield number, BadRow("", reason, wrong_encoding(file, escaped))
        except json.JSONDecodeError as error:
            yield number, BadRow("", f"not JSON ({error.msg}, column {error.colno})")
        except (ValueError, RecursionError) as error:  # numbers too long, brackets too deep
            yield number, BadRow("", f"not JSON that can be read ({first_line(error)})")


def is_array(head: bytes) -> bool:
    """Whether a file of JSON that begins so is one array, not an object in each line."""
    return head.decode(encoding_by(head), "replace").lstrip().startswith("[")


def _lines(file: str, encoding: str) -> Iterator[bytes]:
    """The lines in UTF-8, whatever they are stored in."""
    if encoding.startswith("utf-8"):
        with content_of(file) as content:
            yield from content
        return
    with text_of_file(file, encoding) as text:
        for line in text:
            yield line.encode("utf-8", "surrogatepass")


def _json_row(value: Any) -> Row | BadRow:
    return value if isinstance(value, dict) else BadRow("", f"a JSON {type(value).__name__}, not an object")


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
