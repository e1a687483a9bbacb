"""Rows of CSV files, each by itself, and no row within another.

A quotation mark that opens a field by mistake (`"pain since Monday ...`, as people write) swallows the rows up to the
next one. So the lines of each row are counted, and a field of several lines that look like rows ends the reading.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_accum.data.formats.csv_form import WAYS_OUT, CsvForm
from hf_accum.data.formats.opening import is_escaped, text_of_file, wrong_encoding
from hf_accum.data.formats.rows import BadRow, Row
from hf_accum.errors import UserError

_MANY = 10  # lines that look like rows: fewer are taken for a text
_MANY_WITH_TABS = 3  # which texts have seldom
_MOST_LINES = 10_000  # of one field
_LEARNED_FROM = 1_000  # rows, and at least so many:
_ENOUGH = 5


@dataclass
class CsvRows:
    """The rows of a file. `num_quoted_lines` is known once it was read to its end: lines that begin in a field."""

    file: str
    form: CsvForm
    num_quoted_lines: int = 0

    def read(self, start: int) -> Iterator[tuple[int, Row | BadRow]]:
        """The rows from a number on, each value a text.

        Raises:
            UserError: if a field swallows rows, or has no end.
        """
        form = self.form
        number, num_quoted_lines = -1, 0
        record: list[str] = []  # the lines of a row
        seen = _Seen(form)
        with text_of_file(self.file, form.encoding) as text:
            reader = form.fields(_noting(text, record))
            while True:
                record.clear()
                broken: csv.Error | None = None
                fields: list[str] | None = None
                try:
                    fields = next(reader)
                except StopIteration:
                    break
                except csv.Error as error:
                    broken = error
                if broken is None and not fields:  # blank lines are no rows
                    continue
                if len(record) > 1:
                    num_quoted_lines += len(record) - 1
                    line = reader.line_num - len(record) + 1
                    if broken is not None:
                        raise UserError(_no_end(line, len(record), broken))
                    if form.is_checked and (num_alike := seen.num_alike(record)):
                        raise UserError(_swallows(line, len(record), num_alike))
                if number >= 0 and number < _LEARNED_FROM and fields:
                    seen.add(fields)
                if number >= start:
                    yield number, self._row(fields, broken)
                number += 1
        if start == 0:
            self.num_quoted_lines = num_quoted_lines

    def _row(self, fields: list[str] | None, broken: csv.Error | None) -> Row | BadRow:
        form = self.form
        if fields is None:
            return BadRow("", f"a quotation mark within a field ({broken})", WAYS_OUT)
        if form.ends_rows and len(fields) == len(form.columns) + 1 and not fields[-1]:
            del fields[-1]
        if len(fields) > len(form.columns):
            return BadRow("", f"{len(fields) - len(form.columns)} more fields than the header")
        row: dict[str, Any] = {}
        for index, (name, value) in enumerate(zip(form.columns, form.unescaped(fields), strict=False)):
            if name is None:
                if value and not (index == 0 and form.has_index):
                    return BadRow("", f"a value in column {index + 1}, which has no name")
                continue
            if is_escaped(value):
                return BadRow(name, "not UTF-8", wrong_encoding(self.file, value))
            row[name] = value
        if len(row) < len(form.names):
            return BadRow(form.names[len(row)], "missing: the row has fewer fields than the header")
        if all(value.strip() == name for name, value in row.items()):
            return BadRow("", "the header once more")
        return row


def _noting(lines: Iterator[str], record: list[str]) -> Iterator[str]:
    """The lines, each put into the record that is being read."""
    for number, line in enumerate(lines, 1):
        record.append(line)
        if len(record) > _MOST_LINES:
            raise UserError(_no_end(number - len(record) + 1, len(record), None))
        yield line


@dataclass
class _Seen:
    """What was in the columns so far: of one that holds classes, each value comes again."""

    form: CsvForm
    num_rows: int = 0
    values: list[set[str]] = field(default_factory=list)

    def add(self, fields: Sequence[str]) -> None:
        """Learn from a row."""
        self.num_rows += 1
        if not self.values:
            self.values = [set() for _ in self.form.columns]
        for values, value in zip(self.values, fields, strict=False):
            values.add(value)

    def num_alike(self, record: Sequence[str]) -> int:
        """How many of a record's lines look like rows, if they are rows that were swallowed, and else 0.

        That is where nearly all but the last, which the field ends in, have as many separators as the header, and
        are many, or have a class in its column.
        """
        separator, num_columns = self.form.separator, len(self.form.columns)
        if num_columns < 2:
            return 0
        lines = record[:-1]
        alike = [line for line in lines if line.count(separator) == num_columns - 1]
        if len(alike) < 0.9 * len(lines):
            return 0
        many = _MANY_WITH_TABS if separator == "\t" else _MANY
        return len(alike) if len(alike) >= many or self._have_a_class(alike) else 0

    def _have_a_class(self, lines: Sequence[str]) -> bool:
        if self.num_rows < _ENOUGH:
            return False
        rows = [line.rstrip("\r\n").split(self.form.separator) for line in lines]
        return any(
            len(values) <= self.num_rows / 2 and sum(row[column] in values for row in rows) >= len(rows) / 2
            for column, values in enumerate(self.values)
        )


def _no_end(line: int, num_lines: int, error: csv.Error | None) -> str:
    how = "is followed by more text" if error is not None and "expected after" in str(error) else "has no end"
    return (
        f"line {line}: a quotation mark begins a field that {how}, {num_lines:,} lines on: all rows in it would be "
        f"one; {WAYS_OUT}, or mend that line"
    )


def _swallows(line: int, num_lines: int, num_alike: int) -> str:
    return (
        f"line {line}: a quotation mark begins a field of {num_lines:,} lines, of which {num_alike:,} look like "
        "rows: all of them would be one row; give `csv_quoting none`, if quotation marks are characters like others "
        "here, `csv_quoting standard`, if this is one text, or mend that line"
    )
