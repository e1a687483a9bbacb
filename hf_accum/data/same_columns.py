"""Whether datasets that are mixed go together: the same columns, with values of one kind."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from numbers import Number
from typing import Any

from hf_accum.config.datasets import Part
from hf_accum.data.formats.rows import BadRow, Row, is_missing
from hf_accum.data.source import Source
from hf_accum.errors import UserError, shortened, shown

_NUM_LOOKED_AT = 20  # rows
_NAMES = {"texts", "lists of texts"}  # of classes, as a column that is typed as classes has them too


@dataclass(frozen=True)
class _Column:
    """A column of a dataset: the names of its classes, if it is typed so; else of which kinds its values are."""

    dataset: str
    classes: tuple[str, ...] | None
    kinds: frozenset[str]
    example: str

    def goes_with(self, other: "_Column") -> bool:
        """Whether their values mean the same."""
        if self.classes is not None and other.classes is not None:
            return self.classes == other.classes
        if self.classes is None and other.classes is None:
            return bool(self.kinds & other.kinds)
        return (self.kinds if self.classes is None else other.kinds) <= _NAMES

    def __str__(self) -> str:
        """In words."""
        if self.classes is not None:
            return f"the classes {shortened(', '.join(self.classes), 200)} in dataset {self.dataset!r}"
        return f"{' and '.join(sorted(self.kinds))} ({self.example}) in dataset {self.dataset!r}"


def check_alike(parts: Sequence[Part], sources: Sequence[Source], columns: Sequence[str], group: str | None) -> None:
    """Refuse datasets whose first rows lack a column, or have other kinds of values in it (but for the `group`).

    Raises:
        UserError: naming dataset and column.
    """
    rows = [_first_rows(source) for source in sources]
    for part, of_part in zip(parts, rows, strict=True):
        known = {column for row in of_part for column in row}
        for column in (*columns, *((group,) if group else ())):
            if of_part and column not in known:
                has = shortened(", ".join(map(str, of_part[0])), 300)
                raise UserError(
                    f"dataset {part.name!r} has no column {column!r}: its rows have {has}; datasets that are mixed "
                    "have the same columns: rename it there"
                )
    for column in columns:
        _check_column(column, parts, sources, rows)


def _check_column(
    column: str, parts: Sequence[Part], sources: Sequence[Source], rows: Sequence[Sequence[Row]]
) -> None:
    earlier: list[_Column] = []
    for part, source, of_part in zip(parts, sources, rows, strict=True):
        values = [row[column] for row in of_part if column in row and not is_missing(row[column])]
        classes, kinds = source.class_names.get(column), frozenset(_kinds(values))
        if classes is None and (not kinds or "other" in kinds):
            continue
        one = _Column(part.name, classes, kinds, shown(values[0]) if values else "")
        for other in earlier:
            if not one.goes_with(other):
                raise UserError(
                    f"column {column!r} has {one}, and {other}: in mixed datasets its values are of one kind, "
                    "and its classes have the same names; change it in one of them"
                )
        earlier.append(one)


def _first_rows(source: Source) -> list[Row]:
    every = (row for shard in range(source.num_shards) for _, row in source.read(shard, 0))
    return [row for row in islice(every, _NUM_LOOKED_AT) if not isinstance(row, BadRow)]


def _kinds(values: Iterable[Any]) -> set[str]:
    """A text that is a number counts as one: csv has no others. Empty lists may be of anything."""
    kinds: set[str] = set()
    for value in values:
        if isinstance(value, str):
            kinds.add("numbers" if _is_number(value) else "texts")
        elif isinstance(value, Number):
            kinds.add("numbers")
        elif isinstance(value, list | tuple):
            of_items = _kinds(value)
            kinds |= {"other"} if "other" in of_items else {f"lists of {kind}" for kind in of_items}
        else:
            kinds.add("other")
    return kinds


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
