"""Datasets that do not go together are refused, by dataset and column."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from hf_accum.config.datasets import Part
from hf_accum.data.same_columns import check_alike
from hf_accum.data.source import BadRow, Row, Source
from hf_accum.errors import UserError


def source(rows: Sequence[Any], class_names: Mapping[str, tuple[str, ...]] | None = None) -> Source:
    def read(_: int, start: int) -> Iterator[tuple[int, Row | BadRow]]:
        yield from enumerate(rows[start:], start)

    return Source(("file",), read, class_names or {})


def check(*sources: Source, columns: Sequence[str] = ("label",), group: str | None = None) -> None:
    check_alike([Part(name, name) for name in "ABC"[: len(sources)]], sources, columns, group)


def labels(*values: Any) -> list[dict[str, Any]]:
    return [{"label": value} for value in values]


NAMES = {"label": ("a", "b")}


def test_a_column_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"dataset 'B' has no column 'label': its rows have note, urgency"):
        check(source(labels("a")), source([{"note": "x", "urgency": "y"}]))
    with pytest.raises(UserError, match="dataset 'A' has no column 'patient'"):
        check(source(labels("a")), source([{"label": "x", "patient": 1}]), group="patient")
    check(source([BadRow("", "not JSON"), {"text": "x"}, *labels("a")]), source([]))  # what is not seen is not judged


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (source(labels(0, 1)), source(labels("yes", "no"))),
        (source(labels("0", "1")), source(labels("yes", None))),
        (source(labels(["a"])), source(labels("a"))),
        (source(labels(["a"])), source(labels([1]))),
        (source(labels(0, 1), NAMES), source(labels(0, 1))),
        (source(labels(0, 1), NAMES), source(labels(0, 1), {"label": ("b", "a")})),
    ],
)
def test_values_of_other_kinds_are_refused(one: Source, other: Source) -> None:
    for pair in ((one, other), (other, one)):
        with pytest.raises(UserError, match=r"column 'label' has .* in dataset 'B', and .* in dataset 'A'"):
            check(*pair)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (source(labels("0", "1")), source(labels(0, 1.0))),
        (source(labels("0", "unknown")), source(labels(0, 1))),
        (source(labels(["a"], [])), source(labels([], ["b"]))),
        (source(labels(0, 1), NAMES), source(labels("a", "b"))),
        (source(labels([0], [1]), NAMES), source(labels(["a"], ["b"]))),
        (source(labels(0, 1), NAMES), source(labels(1), NAMES)),
        (source(labels({"bytes": b""})), source(labels("file.png"))),
        (source(labels(None)), source(labels(1))),
    ],
)
def test_values_of_one_kind_go_together_however_they_are_written(one: Source, other: Source) -> None:
    check(one, other)
    check(other, one)


def test_each_is_compared_with_all_before_it() -> None:
    with pytest.raises(UserError, match=r"in dataset 'C', and .* in dataset 'B'"):
        check(source(labels("a")), source([], NAMES), source([], {"label": ("a", "c")}))


def test_a_group_may_be_of_any_kind() -> None:
    rows = [{"label": "a", "patient": 1}], [{"label": "a", "patient": "p-1"}]
    check(source(rows[0]), source(rows[1]), group="patient")
