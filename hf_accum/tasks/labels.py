"""Labels of a classification or regression task: their names, and a row's value as numbers."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hf_accum.data.formats.rows import BadRow, check_unicode, is_missing, value_of
from hf_accum.errors import UserError, shown

Problem = Literal["single_label_classification", "multi_label_classification", "regression"]

_MOST_LABELS = 1_000
_MOST_DIGITS = 1_000  # of a number: Python refuses to read longer ones than some thousands
_LARGEST_FLOAT32 = 3.4028235e38


@dataclass(frozen=True)
class LabelColumn:
    """How a row's label is read: from which column, as what, and by which names (empty: not known yet).

    A class is given by its name, or by its index in `names`. Several labels of one example are a list, or a
    text with `separator` between them; none at all is an empty list or text. In a column that is typed as classes
    (`class_names`) a number is that class, wherever `names` have it, whatever it is called; as many `names` of which
    none is one of the column's are other names for its classes, in their order.
    """

    column: str
    problem: Problem
    names: tuple[str, ...] = ()
    separator: str = "|"
    class_names: tuple[str, ...] = ()

    def keys(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """The row's labels by name, none for a regression. Where `names` are not known yet, any will do.

        Raises:
            BadRow: if the column is missing, its value is no label, or one that is not among known `names`.
        """
        value = self._value(row)
        match self.problem:
            case "regression":
                self._number(value)
                return ()
            case "single_label_classification":
                return (self._name(value),)
            case "multi_label_classification":
                return tuple(self._name(item) for item in self._items(value))

    def encode(self, row: Mapping[str, Any]) -> int | float | list[float]:
        """The row's label as a class index, a number, or a list of 0.0 and 1.0.

        Raises:
            BadRow: as `keys` does, and for a label that is not among `names`.
        """
        value = self._value(row)
        match self.problem:
            case "regression":
                return self._number(value)
            case "single_label_classification":
                return self._index(value)
            case "multi_label_classification":
                indices = [self._index(item) for item in self._items(value)]
                present = set(indices)
                if len(present) < len(indices):
                    raise BadRow(
                        self.column, f"{shown(value)} has a label twice: it has to list the labels that there are"
                    )
                return [1.0 if index in present else 0.0 for index in range(len(self.names))]

    def _value(self, row: Mapping[str, Any]) -> Any:
        value = value_of(row, self.column)
        if is_missing(value):
            raise BadRow(self.column, "no label (null or NaN)")
        return value

    def _number(self, value: Any) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):  # a whole number of more than 308 digits
            raise BadRow(self.column, f"{shown(value)} is not a number") from None
        if not math.isfinite(number) or abs(number) > _LARGEST_FLOAT32:
            raise BadRow(self.column, f"{shown(value)} is not a finite number of float32")
        return number

    def _items(self, value: Any) -> list[Any]:
        if isinstance(value, str):
            return [item.strip() for item in value.split(self.separator) if item.strip()]
        if isinstance(value, list | tuple):
            return list(value)
        raise BadRow(self.column, f"{shown(value)} is neither a list nor a text of labels")

    def _key(self, value: Any) -> str:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, str | int) or (isinstance(value, str) and not value.strip()):
            raise BadRow(self.column, f"{shown(value)} is neither the name nor the number of a class")
        if isinstance(value, str):
            check_unicode(self.column, value)
        return value.strip() if isinstance(value, str) else str(value)

    @property
    def _are_renamed(self) -> bool:
        return len(self.names) == len(self.class_names) and not set(self.names) & set(self.class_names)

    def _name(self, value: Any) -> str:
        return self.names[self._index(value)] if self.names else self._key(value)

    def _index(self, value: Any) -> int:
        key = self._key(value)
        if key in self.names and (isinstance(value, str) or not self.class_names):
            return self.names.index(key)
        if key.isdecimal() and len(key) <= _MOST_DIGITS:
            number = int(key)
            if number < len(self.class_names):
                if self._are_renamed:
                    return number
                key = self.class_names[number]
                if key in self.names:
                    return self.names.index(key)
            elif not self.class_names and number < len(self.names) and not any(n.isdecimal() for n in self.names):
                return number
        known = ", ".join(self.names[:20]) + (", ..." if len(self.names) > 20 else "")
        raise BadRow(self.column, f"label {shown(key)} is out of range: it is none of {known}")


def named_labels(names: Sequence[str]) -> dict[str, Any]:
    """What a model's config has to say about labels: their names, in order."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def sorted_names(keys: Iterable[str], column: str) -> tuple[str, ...]:
    """Label names found in the data, in a fixed order: numbers by size, texts by alphabet.

    Raises:
        UserError: for fewer than two, or too many to be classes.
    """
    names = sorted(set(keys), key=lambda key: (0, int(key), key) if _is_integer(key) else (1, 0, key))
    if len(names) < 2:
        raise UserError(f"column {column!r} has {len(names)} different labels: there have to be at least 2")
    if len(names) > _MOST_LABELS:
        raise UserError(
            f"column {column!r} has {len(names)} different labels, more than {_MOST_LABELS}: is it a text or a "
            "number (`problem regression`)? Name the classes by `labels` if they are really that many"
        )
    return tuple(names)


def _is_integer(key: str) -> bool:
    return key.removeprefix("-").isdecimal() and len(key) <= _MOST_DIGITS
