"""What a CSV file looks like, found from its beginning: separator, quotation marks, columns.

Programs write `;` where the comma is the decimal point, tabs, a space after the separator, quotation marks that are
doubled or stand behind a backslash, a separator at the end of each line, an index without a name.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from hf_accum.data.formats.opening import (
    check_no_nul,
    encoding_by,
    head_of,
    is_escaped,
    suffix_of,
    text_of_file,
    wrong_encoding,
)
from hf_accum.errors import UserError, shortened

Quoting = Literal["auto", "standard", "backslash", "none"]
"""What a quotation mark is. `standard`: it encloses a field, and is doubled within one. `backslash`: it encloses a
field, and stands behind a backslash within one. `none`: it is a character like others. `auto`: `standard` or
`backslash`, as the file's beginning has it; fields that swallow rows are an error."""

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_LOOKED_AT = 2**16  # characters
_MARK, _BACKSLASH = "\udfff", "\udffe"  # for those behind a backslash; no text that is decoded has these

WAYS_OUT = (
    "give `csv_quoting none`, if quotation marks are characters like others here, or `csv_quoting backslash`, if "
    "those within a field stand behind a backslash"
)

csv.field_size_limit(2**31 - 1)  # clinical notes are longer than the 128 KiB that csv allows


@dataclass(frozen=True)
class CsvForm:
    """How a file is to be read. `columns` are the names of its fields, in order; None: it is left out, and empty."""

    separator: str
    quoting: Quoting = "auto"
    skips_spaces: bool = False
    ends_rows: bool = False
    """Whether rows, but not the header, end with a separator."""
    columns: tuple[str | None, ...] = ()
    has_index: bool = False
    """Whether the first column is left out whatever is in it."""
    is_checked: bool = False
    """Whether a field of lines that look like rows is an error."""
    encoding: str = "utf-8"
    notes: tuple[str, ...] = ()
    """What the user should know of it."""

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The columns that a row has."""
        return tuple(name for name in self.columns if name is not None)

    def fields(self, lines: Iterator[str]) -> Any:
        """A reader of `csv` over lines; `unescaped` is to be applied to its fields."""
        if self.quoting == "backslash":
            lines = (line.replace("\\\\", _BACKSLASH).replace('\\"', _MARK) for line in lines)
        how: dict[str, Any] = {"delimiter": self.separator, "skipinitialspace": self.skips_spaces, "strict": True}
        if self.quoting == "none":
            how |= {"quoting": csv.QUOTE_NONE}
        return csv.reader(lines, **how)

    def unescaped(self, fields: list[str]) -> list[str]:
        """The fields of a row as they are meant."""
        if self.quoting != "backslash":
            return fields
        return [field.replace(_MARK, '"').replace(_BACKSLASH, "\\") for field in fields]


def form_of(file: str, quoting: Quoting = "auto", separator: str | None = None) -> CsvForm:
    """The form of a file, from its beginning; `separator` is found, too, where it is not given.

    Raises:
        UserError: if two columns have the same name, or the header cannot be read.
    """
    encoding = encoding_by(head_of(file))
    with text_of_file(file, encoding) as text:
        sample = text.read(_LOOKED_AT)
    check_no_nul(sample, file)
    lines = io.StringIO(sample, newline="").readlines()
    if len(sample) == _LOOKED_AT:
        lines = lines[:-1] or lines  # the last one may be cut
    usual = separator or ("\t" if suffix_of(file) == ".tsv" else ",")
    form = replace(_best(lines, usual, quoting, separator is None), encoding=encoding, is_checked=quoting == "auto")
    rows, num_broken = _rows(lines, form)
    if not rows:
        if num_broken:
            raise UserError(f"a quotation mark within a field of its header: {WAYS_OUT}")
        return form
    header = [name.strip() for name in rows[0]]
    for name in header:
        if is_escaped(name):
            raise UserError(f"its header is not UTF-8: {wrong_encoding(file, name)}")
    return _with_columns(form, header, rows, usual)


def _best(lines: list[str], usual: str, quoting: Quoting, is_free: bool) -> CsvForm:
    """The form that fits most rows, and of equal ones the most usual."""
    separators = [usual, *(s for s in _SEPARATORS if s != usual)] if is_free else [usual]
    quotings: list[Quoting] = [quoting]
    if quoting == "auto" and any('\\"' in line for line in lines):
        quotings.append("backslash")
    fits: dict[CsvForm, float] = {}
    for separator in separators:
        has_spaces = any(f"{separator} " in line for line in lines)
        for of_quotes in quotings:
            for skips_spaces in (False, True) if has_spaces else (False,):
                form = CsvForm(separator, of_quotes, skips_spaces)
                rows, num_broken = _rows(lines, form)
                if rows and (len(rows[0]) > 1 or separator == usual):
                    fits[form] = (len(rows[0]) > 1) + _share_that_fits(rows, num_broken, form)
    return max(fits, key=lambda form: fits[form], default=CsvForm(usual, quoting))


def _share_that_fits(rows: list[list[str]], num_broken: int, form: CsvForm) -> float:
    """The share of rows that are as the header is; less where the spaces in them tell against it."""
    header, rows = rows[0], rows[1:]
    good = sum(len(row) == len(header) or (len(row) == len(header) + 1 and not row[-1]) for row in rows)
    share = (good + 1) / (len(rows) + num_broken + 1)
    if form.skips_spaces:
        return share - 0.001  # without need they are kept
    of_header = len(header) > 1 and all(name.startswith(" ") for name in header[1:])
    of_fields = any(field.startswith(' "') and field.endswith('"') for row in rows for field in row)
    return share - 0.1 * (of_header or of_fields)


def _rows(lines: Sequence[str], form: CsvForm) -> tuple[list[list[str]], int]:
    """The rows of a file's first lines, without blank ones, and how many are broken."""
    rows: list[list[str]] = []
    num_broken = 0
    reader = form.fields(iter(lines))
    while True:
        try:
            fields = next(reader, None)
        except csv.Error:
            num_broken += reader.line_num < len(lines)  # the last one may be cut
            if not rows:
                return [], num_broken
            continue
        if fields is None:
            return rows, num_broken
        if fields:
            rows.append(fields)


def _with_columns(form: CsvForm, header: list[str], rows: list[list[str]], usual: str) -> CsvForm:
    """The form with its columns, and what is to be said of it."""
    notes: list[str] = []
    columns: list[str | None] = list(header)
    if form.separator != usual:
        notes.append(f"fields are separated by {_SEPARATORS[form.separator]}")
    if form.skips_spaces:
        notes.append("spaces behind separators are left out")
    if form.quoting == "backslash":
        notes.append("quotation marks within fields stand behind a backslash (`csv_quoting backslash`)")
    if [name.strip(" ") for name in rows[0]] != rows[0] and not form.skips_spaces:
        notes.append("names of columns are taken without the spaces around them")
    while len(columns) > 1 and columns[-1] == "" and not any(row[len(columns) - 1 :][:1] > [""] for row in rows[1:]):
        columns.pop()
    if num_empty := len(header) - len(columns):
        columns += [None] * num_empty
        notes.append("lines end with separators, behind which is nothing")
    ends_rows = len(rows) > 1 and all(len(row) == len(header) + 1 and not row[-1] for row in rows[1:])
    if ends_rows:
        notes.append("its rows end with a separator, behind which is nothing")
    has_index = len(columns) > 1 and columns[0] == ""
    if has_index:
        columns[0] = None
        notes.append("the first column has no name (an index, as pandas writes it) and is left out")
    names = [name for name in columns if name is not None]
    if len(set(names)) < len(names):
        raise UserError(f"two columns have the same name: {shortened(', '.join(names), 300)}")
    return replace(form, columns=tuple(columns), ends_rows=ends_rows, has_index=has_index, notes=tuple(notes))
