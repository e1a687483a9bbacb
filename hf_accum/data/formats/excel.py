"""Rows of Excel workbooks (.xlsx): of the first sheet, whose first row names the columns; values with their types."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hf_accum.data.formats.opening import opened
from hf_accum.data.formats.rows import BadRow, Row
from hf_accum.errors import UserError, shortened


@dataclass(frozen=True)
class ExcelRows:
    """The rows of a workbook; `columns` are those with a name, by their places from 0."""

    file: str
    columns: dict[int, str]
    notes: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that a row has."""
        return tuple(self.columns.values())

    def read(self, start: int) -> Iterator[tuple[int, Row | BadRow]]:
        """The rows from a number on, which is that of the sheet's row below the header; empty ones are none."""
        with _first_sheet(self.file) as (sheet, _):
            for number, cells in enumerate(sheet.iter_rows(min_row=start + 2), start):
                if any(cell.value is not None for cell in cells):
                    yield number, self._row(cells)

    def _row(self, cells: tuple[Any, ...]) -> Row | BadRow:
        row: dict[str, Any] = dict.fromkeys(self.columns.values())
        for index, cell in enumerate(cells):
            name = self.columns.get(index)
            if name is None:
                if cell.value is not None and index > 0:
                    return BadRow("", f"a value in column {index + 1}, which has no name")
            elif cell.data_type == "e":
                return BadRow(name, f"{cell.value}, which is an error of the sheet's formula")
            else:
                row[name] = cell.value
        return row


def open_excel(file: str) -> ExcelRows:
    """Open a workbook.

    Raises:
        UserError: if openpyxl is missing, or two columns have the same name.
    """
    with _first_sheet(file) as (sheet, others):
        header = next(sheet.iter_rows(max_row=1, values_only=True), ())
    names = {index: str(name).strip() for index, name in enumerate(header) if name is not None}
    if len(set(names.values())) < len(names):
        raise UserError(f"two columns have the same name: {shortened(', '.join(names.values()), 300)}")
    notes: list[str] = []
    if others:
        notes.append(
            f"only its first sheet is read, {sheet.title!r}; left out: {shortened(', '.join(others), 200)} (put one "
            "first, or into a file of its own, to have it read)"
        )
    if names and 0 not in names:
        notes.append("the first column has no name (an index, as pandas writes it) and is left out")
    return ExcelRows(file, names, tuple(notes))


@contextmanager
def _first_sheet(file: str) -> Iterator[tuple[Any, list[str]]]:
    """The first sheet, and the names of the others."""
    try:
        from openpyxl import load_workbook
    except ImportError as error:
        raise UserError("to read .xlsx needs openpyxl: `pip install openpyxl`") from error
    with opened(file, "rb") as raw:
        # Values of formulas as they were stored, and nothing of other files.
        book = load_workbook(raw, read_only=True, data_only=True, keep_links=False)
        try:
            if not book.worksheets:
                raise UserError("has no sheet with cells")
            sheet, *others = book.worksheets
            sheet.reset_dimensions()  # some programs store a wrong one
            yield sheet, [other.title for other in others]
        finally:
            book.close()
