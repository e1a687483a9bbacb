"""Labels of a classification or regression task: their names, and a row's value as numbers."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, Literal

from hf_accum.config.validation import holds_secret
from hf_accum.data.formats.rows import BadColumn, BadRow, check_unicode, is_missing, value_of
from hf_accum.errors import UserError, shortened, shown
from hf_accum.tasks.label_codes import as_flag
from hf_accum.tasks.label_lists import binary, is_multi_hot, is_of_numbers, written_list

Problem = Literal["single_label_classification", "multi_label_classification", "regression"]
LabelFormat = Literal["auto", "names", "indices", "multi_hot"]

_MOST_LABELS = 1_000
_MOST_DIGITS = 1_000  # of a number: Python refuses to read longer ones than some thousands
_LARGEST_FLOAT32 = 3.4028235e38
_WHOLE = re.compile(r"(-?\d{1,18})\.0+")


@dataclass(frozen=True)
class LabelColumn:
    """How a row's label is read: from which column, as what, and by which names (empty: not known yet).

    A class is given by its name. A whole number is the class that has it among `codes` (one for each of `names`), or,
    in a column that is typed as classes (`class_names`), that class, wherever `names` have it, whatever it is called;
    as many `names` of which none is one of the column's are other names for its classes, in their order. Otherwise
    numbers are names of their own: to names that are words they say nothing, and the column is refused.

    Several labels of one example are a list, written out as text or not, or a text with `separator` between them;
    none at all is an empty list or text. A list of as many 0 and 1, or truth values, as there are names says of each
    whether it is there; where that could also be a list of labels, the column is refused. `label_format` decides: all
    are names; indices from 0 on; or a 0 or 1 for each name.
    """

    column: str
    problem: Problem
    names: tuple[str, ...] = ()
    separator: str = "|"
    class_names: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()
    label_format: LabelFormat = "auto"

    @property
    def as_flag(self) -> list[str]:
        """The names as the flags give them, with their codes."""
        return as_flag(self.names, self.codes)

    @property
    def notes(self) -> list[str]:
        """What the user should know of how it is read: that its classes have other names here."""
        if not self.class_names or not self._are_renamed:
            return []
        theirs, ours = (shortened(", ".join(names), 200) for names in (self.class_names, self.names))
        return [f"column {self.column!r} has the classes {theirs}: they are taken for {ours}, in this order"]

    def keys(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """The row's labels by name, none for a regression. Where `names` are not known yet, any will do.

        Raises:
            BadRow: if the column is missing, its value is no label, or one that is not among known `names`.
            BadColumn: if the value shows that the column is to be read otherwise.
        """
        value = self._value(row)
        match self.problem:
            case "regression":
                self._number(value)
                return ()
            case "single_label_classification":
                return (self._name(value),)
            case "multi_label_classification":
                items = self._items(value)
                present = self._present(items)
                if present is not None:
                    return tuple(self.names[index] for index in present)
                keys = tuple(self._name(item) for item in items)
                self._refuse_twice(keys, value)
                return keys

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
                items = self._items(value)
                present = self._present(items)
                if present is None:
                    present = [self._index(item) for item in items]
                    self._refuse_twice(present, value)
                return [1.0 if index in present else 0.0 for index in range(len(self.names))]

    def with_spaces(self, row: Mapping[str, Any]) -> list[str]:
        """The labels of a good row that have spaces around them, which are read without."""
        value = self._value(row)
        if self.problem == "multi_label_classification":
            is_joined = isinstance(value, str) and written_list(value) is None
            found = [] if is_joined else self._items(value)  # spaces beside the separator are nobody's
        else:
            found = [value]
        return [item for item in found if isinstance(item, str) and item != item.strip()]

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
            written = written_list(value)
            if written is not None:
                return written
            text = value.strip()
            if text.startswith("[") and text.endswith("]"):
                raise BadRow(
                    self.column,
                    f"{shown(value)} looks like a list, and cannot be read as one: it has to have commas between "
                    "items that are numbers, or texts in quotation marks",
                )
            return [item.strip() for item in value.split(self.separator) if item.strip()]
        if isinstance(value, list | tuple):
            return list(value)
        raise BadRow(self.column, f"{shown(value)} is neither a list nor a text of labels")

    def _present(self, items: Sequence[Any]) -> list[int] | None:
        """The places of the labels of a list with a 0 or 1 for each name; None: it is a list of labels."""
        if self.label_format == "multi_hot":
            numbers = [binary(item) for item in items]
            if None in numbers or len(numbers) != len(self.names):
                raise BadRow(
                    self.column,
                    f"{shown(list(items))} has to be a 0 or 1 for each of the {len(self.names)} labels, as "
                    "`label_format multi_hot` says",
                )
            return [index for index, number in enumerate(numbers) if number]
        if self.label_format != "auto" or not is_of_numbers(items) or self.class_names or self.codes:
            return None
        is_hot, are_bool = is_multi_hot(items), all(isinstance(item, bool) for item in items)
        if not self.names:
            if is_hot and (len(items) > 1 or are_bool):
                raise BadColumn(
                    self.column,
                    f"{shown(list(items))} can be a 0 or 1 for each label, or the labels 0 and 1 themselves: give "
                    "the names of all labels by `labels` for the one, `label_format names` for the other",
                )
            return None
        if not is_hot or len(items) != len(self.names):
            return None
        can_be_labels = {"0", "1"} & set(self.names) or (len(items) == 2 and items[0] != items[1])
        if can_be_labels and not are_bool:
            raise BadColumn(
                self.column,
                f"{shown(list(items))} can be a 0 or 1 for each of the {len(items)} labels, or a list of labels by "
                "number: say which by `label_format` (multi_hot, indices or names), or write names into the data",
            )
        return [index for index, item in enumerate(items) if item]

    def _refuse_twice(self, labels: Sequence[Any], value: Any) -> None:
        if len(set(labels)) < len(labels):
            raise BadRow(self.column, f"{shown(value)} has a label twice: it has to list the labels that there are")

    def _key(self, value: Any) -> str:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, str | int) or (isinstance(value, str) and not value.strip()):
            raise BadRow(self.column, f"{shown(value)} is neither the name nor the number of a class")
        if not isinstance(value, str):
            return str(value)
        check_unicode(self.column, value)
        if fault := _fault_of(value):
            raise BadRow(self.column, fault)
        if self.problem == "single_label_classification" and written_list(value) is not None:
            raise BadColumn(
                self.column,
                f"{shown(value)} is a list written out: of several labels `problem multi_label_classification` makes "
                "use, and one label has to stand alone",
            )
        return value.strip()

    @property
    def _are_renamed(self) -> bool:
        return len(self.names) == len(self.class_names) and not set(self.names) & set(self.class_names)

    def _name(self, value: Any) -> str:
        return self.names[self._index(value)] if self.names else self._key(value)

    def _index(self, value: Any) -> int:
        key = self._key(value)
        number = _whole_number(key)
        if self.label_format == "indices":
            if number is not None and 0 <= number < len(self.names):
                return number
            raise BadRow(self.column, f"label {shown(key)} is no index from 0 to {len(self.names) - 1}")
        if number is not None and str(number) in self.codes:
            return self.codes.index(str(number))
        if key in self.names and (isinstance(value, str) or not self.class_names):
            return self.names.index(key)
        if key.isdecimal() and number is not None and number < len(self.class_names):
            if self._are_renamed:
                return number
            key = self.class_names[number]
            if key in self.names:
                return self.names.index(key)
        elif number is not None and not self.codes and not self.class_names and self.label_format == "auto":
            self._refuse_number(key, number)
        known = as_flag(self.names[:20], self.codes[:20])
        more = ", ..." if len(self.names) > 20 else ""
        by_lower_case = {name.casefold(): name for name in self.names}
        near = get_close_matches(key.casefold(), by_lower_case, 1)
        meant = f"; is {by_lower_case[near[0]]!r} meant?" if near else ""
        reason = f"label {shown(key)} is out of range: it is none of {', '.join(known)}{more}{meant}"
        raise BadRow(self.column, reason)

    def _refuse_number(self, key: str, number: int) -> None:
        """Where it is not one number more or less that is wrong, but what numbers mean here."""
        numbers = {_whole_number(name): name for name in self.names}
        if number in numbers:
            raise BadColumn(
                self.column,
                f"label {shown(key)} is the number of label {numbers[number]!r} written in another way, which "
                "concerns the whole column: write it in one way in all files and splits",
            )
        if set(numbers) == {None}:
            first = ",".join(f"{index}={name}" for index, name in enumerate(self.names[:3], 1))
            raise BadColumn(
                self.column,
                f"label {shown(key)} is a number, and the labels are the names {', '.join(self.names[:3])}"
                f"{', ...' if len(self.names) > 3 else ''}: say which number is which, as `labels {first}`; or, if 0 "
                "is the first of them, `label_format indices`",
            )


@lru_cache(maxsize=4096)
def _fault_of(label: str) -> str | None:
    """Why a text cannot be the name of a class: names stand in config.yaml."""
    if "\0" in label:
        return f"{shown(label)} has a NUL character"
    if holds_secret(label):
        return "*** holds a token or password, which would be seen in config.yaml"
    return None


def _whole_number(key: str) -> int | None:
    """That of 7, -7, 007 and 7.0."""
    match = _WHOLE.fullmatch(key)
    digits = match[1] if match else key
    return int(digits) if _is_integer(digits) else None


def named_labels(names: Sequence[str]) -> dict[str, Any]:
    """What a model's config has to say about labels: their names, in order."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def sorted_names(keys: Iterable[str], column: str) -> tuple[str, ...]:
    """Label names found in the data, in a fixed order: numbers by size, texts by alphabet.

    Raises:
        UserError: for fewer than two, or too many to be classes.
    """
    names = _in_order(keys)
    for name in names:
        if (match := _WHOLE.fullmatch(name)) and match[1] in names:
            raise UserError(
                f"column {column!r} has the labels {match[1]} and {name}, one number written in two ways, which "
                "concerns the whole column: write it in one way in all files and splits"
            )
    if len(names) < 2:
        raise UserError(f"column {column!r} has {len(names)} different labels: there have to be at least 2")
    if len(names) > _MOST_LABELS:
        raise UserError(
            f"column {column!r} has {len(names)} different labels, more than {_MOST_LABELS}: is it a text or a "
            "number (`problem regression`)? Name the classes by `labels` if they are really that many"
        )
    return tuple(names)


def found_names(keys: Iterable[str], earlier: Sequence[str], column: str) -> tuple[str, ...]:
    """The names of an earlier run in their order, and behind them those that are new in the data, as they are sorted.

    Raises:
        UserError: as `sorted_names` does, and if the data has none of the earlier ones.
    """
    found = set(keys)
    if not earlier:
        return sorted_names(found, column)
    if not found & set(earlier):
        raise UserError(
            f"column {column!r} has the labels {', '.join(sorted(found)[:5])}, and the run of `init_from` learned "
            f"{', '.join(earlier[:5])}: there has to be one in common"
        )
    return (*earlier, *_in_order(found - set(earlier)))


def names_of_classes(class_names: Sequence[str], earlier: Sequence[str], column: str) -> tuple[str, ...]:
    """The names of a column that is typed as classes, behind those of an earlier run, if there is one.

    Raises:
        UserError: if the column has none of the earlier ones.
    """
    return found_names(class_names, earlier, column) if class_names and earlier else tuple(class_names)


def _in_order(keys: Iterable[str]) -> list[str]:
    return sorted(set(keys), key=lambda key: (0, int(key), key) if _is_integer(key) else (1, 0, key))


def _is_integer(key: str) -> bool:
    return key.removeprefix("-").isdecimal() and len(key) <= _MOST_DIGITS
