"""One text of several columns of a row: a template with the name of a column in braces where its value goes."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from hf_accum.data.formats.rows import BadRow, Row, is_missing, value_of
from hf_accum.data.source import Source
from hf_accum.errors import UserError, shown

OnMissingText = Literal["error", "empty"]
_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|[{}]")
_BRACES = {"{{": "{", "}}": "}"}


@dataclass(frozen=True)
class TextTemplate:
    """`Age {age}: {note}`: the text is what stands there, with the row's values for what is in braces.

    Anything but a brace can be in a column's name; `{{` and `}}` are braces of the text. A row without a value (null,
    NaN, or no more than spaces) is a bad one, or has nothing there, as `on_missing` says.

    Raises:
        UserError: for a template without a column, or with a brace that has no other one.
    """

    template: str
    on_missing: OnMissingText = "error"

    def __post_init__(self) -> None:
        if not self.columns:
            raise UserError(
                f"`text_template` {shown(self.template)}: has to have a column's name in braces: {{note}}"
            )

    @cached_property
    def _pieces(self) -> list[tuple[str, str | None]]:
        """Text, and the column that follows; None: none does."""
        pieces: list[tuple[str, str | None]] = []
        end = 0
        for match in _PIECE.finditer(self.template):
            before, found = self.template[end : match.start()], match.group()
            end = match.end()
            if match.group(1) is not None:
                pieces.append((before, match.group(1)))
            elif found in _BRACES:
                pieces.append((before + _BRACES[found], None))
            else:
                raise UserError(
                    f"`text_template` {shown(self.template)}: has to have a column's name between two braces, as "
                    f"{{note}}, and braces of the text twice ({{{{ or }}}}); that at character {match.start() + 1} "
                    "stands alone"
                )
        return [*pieces, (self.template[end:], None)]

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Those that it names, each once."""
        return tuple(dict.fromkeys(column for _, column in self._pieces if column is not None))

    def fill(self, row: Row) -> str:
        """The text of a row. A whole number is written without a point, also where the column holds 63.0.

        Raises:
            BadRow: naming the column that it does not have, or has no value in that can be written.
        """
        values = {column: self._written(row, column) for column in self.columns}
        if not any(values.values()):
            raise BadRow(self.columns[0], f"no text: nothing stands in {', '.join(self.columns)}")
        return "".join(before + ("" if column is None else values[column]) for before, column in self._pieces)

    def empty_in(self, row: Row) -> tuple[str, ...]:
        """The columns in which a row has nothing."""
        return tuple(column for column in self.columns if _is_empty(value_of(row, column)))

    def _written(self, row: Row, column: str) -> str:
        value = value_of(row, column)
        if _is_empty(value):
            if self.on_missing == "empty":
                return ""
            way_out = "mend the row, or have nothing stand there by `on_missing_text empty`"
            raise BadRow(column, "no text (null, NaN or empty)", way_out)
        if isinstance(value, list | tuple | dict | bytes):
            raise BadRow(column, f"{shown(value)} is of type {type(value).__name__}, not a text or a number")
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _is_empty(value: Any) -> bool:
    return is_missing(value) or (isinstance(value, str) and not value.strip())


def with_texts(source: Source, template: TextTemplate) -> Source:
    """The rows with their text in a column besides, which is called as the template itself."""

    def read(shard: int, start: int) -> Iterator[tuple[int, Row | BadRow]]:
        for number, row in source.read(shard, start):
            if not isinstance(row, BadRow):
                try:
                    row = {**row, template.template: template.fill(row)}
                except BadRow as bad:
                    row = bad
            yield number, row

    return replace(source, read=read)
