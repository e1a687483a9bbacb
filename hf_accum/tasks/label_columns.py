"""A column for each label, with a 0 or 1 (true or false, yes or no) in it: read as one column of lists."""

from collections.abc import Sequence

from hf_accum.data.formats.rows import BadRow, is_missing, value_of
from hf_accum.data.source import Row, Source, in_parts
from hf_accum.errors import shown
from hf_accum.tasks.label_lists import binary


def joined_name(columns: Sequence[str]) -> str:
    """What the joined column is called."""
    return ", ".join(columns)


def join_labels(source: Source, columns: Sequence[str], names: Sequence[str]) -> Source:
    """The rows with one column more: a list of those `names`, one for each column, of which the column says yes."""
    joined = joined_name(columns)

    def with_list(row: Row) -> list[Row]:
        return [{**row, joined: [name for name, column in zip(names, columns, strict=True) if _is_set(row, column)]}]

    return in_parts(source, with_list, 1)


def _is_set(row: Row, column: str) -> bool:
    value = value_of(row, column)
    if is_missing(value):
        raise BadRow(column, "no label (null or NaN)")
    number = binary(value)
    if number is None:
        raise BadRow(column, f"{shown(value)} has to be 0 or 1, true or false, yes or no: a column of one label")
    return bool(number)
