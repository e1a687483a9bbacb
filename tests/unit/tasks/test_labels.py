"""Labels: by name, by number, several of them, none; what cannot be one is refused with its field."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hf_accum.data.formats.rows import BadColumn, BadRow
from hf_accum.tasks.labels import LabelColumn, Problem, sorted_names

SINGLE: Problem = "single_label_classification"
MULTI: Problem = "multi_label_classification"
NAMES = ("absent", "mild", "severe")

words = st.text(st.characters(categories=["L", "Nd", "Pd", "Zs"]), min_size=1).filter(
    lambda text: text == text.strip() and not text.isdecimal() and text
)
several_words = st.lists(words, min_size=2, max_size=6, unique=True)


def refused(column: LabelColumn, row: dict[str, Any]) -> str:
    """Why the row is bad, which `encode` says; always about the label's column."""
    with pytest.raises(BadRow) as error:
        column.encode(row)
    assert error.value.field == column.column
    return error.value.reason


def test_classes_that_have_other_names_here_are_told() -> None:
    column = LabelColumn("label", SINGLE, ("no", "yes"), class_names=("neg", "pos"))
    assert column.encode({"label": 1}) == 1
    assert column.notes == ["column 'label' has the classes neg, pos: they are taken for no, yes, in this order"]
    for other in (replace(column, class_names=("yes", "no")), replace(column, class_names=())):
        assert other.notes == []


# One class


@given(names=several_words, data=st.data())
def test_a_class_by_name_or_number_in_any_form(names: list[str], data: st.DataObject) -> None:
    column = LabelColumn("label", SINGLE, tuple(names))
    indexed = replace(column, label_format="indices")
    coded = replace(column, codes=tuple(str(7 * place - 7) for place in range(len(names))))
    index = data.draw(st.integers(0, len(names) - 1))
    by_name = [(one, value) for one in (column, coded) for value in (names[index], f" {names[index]}\t")]
    by_number = [(one, n) for one, n in ((indexed, index), (coded, 7 * index - 7))]
    in_any_form = [(one, value) for one, n in by_number for value in (n, float(n), str(n), f" {n} ", f"{n}.0")]
    for one, value in [*by_name, *in_any_form]:
        assert one.encode({"label": value}) == index
        assert one.keys({"label": value}) == (names[index],)


@given(names=several_words, number=st.integers())
def test_numbers_out_of_range_are_refused(names: list[str], number: int) -> None:
    assume(not 0 <= number < len(names))
    column = LabelColumn("label", SINGLE, tuple(names), class_names=tuple(names))
    indexed, coded = (
        replace(column, label_format="indices"),
        replace(column, codes=tuple(map(str, range(len(names))))),
    )
    for value in (number, str(number)):
        assert f"label {str(value)!r} is out of range" in refused(column, {"label": value})
        assert f"label {str(value)!r} is out of range: it is none of 0={names[0]}" in refused(coded, {"label": value})
        assert "is no index from 0 to" in refused(indexed, {"label": value})


@pytest.mark.parametrize("problem", [SINGLE, MULTI])
@pytest.mark.parametrize("value", [1, "2", 3.0, "3.0", 0, 17])
def test_numbers_say_nothing_to_names(problem: Problem, value: Any) -> None:
    """Codes 1, 2, 3 once were read as the second and third name, and 3 as a bad row."""
    column = LabelColumn("label", problem, ("immediate", "urgent", "routine"))
    for read in (column.keys, column.encode):
        with pytest.raises(BadColumn, match=r"is a number, and the labels are the names .* `labels 1=immediate,2="):
            read({"label": value if problem == SINGLE else [value]})


def test_a_number_written_in_two_ways_concerns_the_whole_column() -> None:
    for names, value in ((("0", "1"), "0.0"), (("0.0", "1.0"), "1"), (("0.0", "1.0"), 1.0)):
        with pytest.raises(BadColumn, match="written in another way, which concerns the whole column"):
            LabelColumn("label", SINGLE, names).encode({"label": value})
    with pytest.raises(ValueError, match=r"column 'label' has the labels 0 and 0\.0, one number written in two ways"):
        sorted_names(["0.0", "1", "0", "1.0"], "label")
    assert sorted_names(["0.0", "1.0"], "label") == ("0.0", "1.0")


def test_texts_that_no_file_could_hold_are_told_with_their_column() -> None:
    """Not as a flag that nobody gave: found names stand in config.yaml."""
    column = LabelColumn("label", SINGLE)
    token = "hf_" + "a" * 30
    for value, said in (("\ud800", "not UTF-8"), ("a\0b", "NUL character"), (token, "holds a token")):
        with pytest.raises(BadRow, match=said) as error:
            column.keys({"label": value})
        assert error.value.field == "label"
        assert token not in str(error.value)


def test_a_list_written_out_is_no_single_label() -> None:
    for names in ((), NAMES):
        for value in ("['mild', 'severe']", "[0, 1, 0]", "[]"):
            with pytest.raises(BadColumn, match=r"is a list written out: .* `problem multi_label_classification`"):
                LabelColumn("label", SINGLE, names).keys({"label": value})
    assert LabelColumn("label", SINGLE).keys({"label": "[unknown]"}) == ("[unknown]",)


def test_spaces_around_labels_are_told() -> None:
    single, multi = LabelColumn("label", SINGLE), LabelColumn("label", MULTI)
    assert single.with_spaces({"label": " urgent"}) == [" urgent"]
    assert single.with_spaces({"label": "urgent"}) == single.with_spaces({"label": 3}) == []
    assert multi.with_spaces({"label": ["a ", "b"]}) == multi.with_spaces({"label": "['a ', 'b']"}) == ["a "]
    assert multi.with_spaces({"label": "a | b "}) == []


def test_a_name_that_is_near_is_said_first_of_all() -> None:
    column = LabelColumn("system", SINGLE, (*(f"s{n}" for n in range(30)), "Respiratory System"))
    told = refused(column, {"system": "diseases of the respiratory system"})
    assert told.endswith("s19, ...; is 'Respiratory System' meant?")
    assert "meant" not in refused(column, {"system": "unheard of"})


def test_names_that_are_numbers_are_names_not_positions() -> None:
    """Grades 1, 2, 3: 0 is none of them, and 1 is the first."""
    column = LabelColumn("grade", SINGLE, ("1", "2", "3"))
    assert [column.encode({"grade": value}) for value in (1, "2", 3.0)] == [0, 1, 2]
    assert "label '0' is out of range: it is none of 1, 2, 3" in refused(column, {"grade": 0})
    mixed = LabelColumn("grade", SINGLE, ("unknown", "1"))
    assert mixed.encode({"grade": 1}) == 1
    assert "out of range" in refused(mixed, {"grade": 0})


@pytest.mark.parametrize("value", [None, math.nan])
@pytest.mark.parametrize("problem", [SINGLE, MULTI, "regression"])
def test_no_label(problem: Problem, value: float | None) -> None:
    column = LabelColumn("label", problem, NAMES)
    assert refused(column, {"label": value}) == "no label (null or NaN)"
    assert refused(column, {"text": "a", "other": 1}) == "no such column; the row has text, other"
    for row in ({"label": value}, {}):
        with pytest.raises(BadRow):
            column.keys(row)


@pytest.mark.parametrize("value", ["", "  ", 0.5, math.inf, [1], {"a": 1}, b"mild"])
def test_values_that_are_no_class(value: Any) -> None:
    said = "is neither the name nor the number of a class"
    assert said in refused(LabelColumn("label", SINGLE, NAMES), {"label": value})
    with pytest.raises(BadRow, match=said):
        LabelColumn("label", SINGLE).keys({"label": value})


def test_names_are_the_data_s_own_while_none_are_known() -> None:
    column = LabelColumn("label", SINGLE)
    assert [column.keys({"label": value}) for value in ("mild ", 7, 7.0, "7")] == [
        ("mild",),
        ("7",),
        ("7",),
        ("7",),
    ]


def test_many_names_are_not_all_said() -> None:
    column = LabelColumn("label", SINGLE, tuple(f"class {index}" for index in range(500)))
    assert refused(column, {"label": "other"}).endswith("class 18, class 19, ...")


# Several classes


@given(names=several_words, data=st.data())
def test_any_subset_of_classes_as_a_list_or_a_text(names: list[str], data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.sampled_from(range(len(names))), unique=True))
    column = LabelColumn("label", MULTI, tuple(names), separator=";")
    expected = [float(index in indices) for index in range(len(names))]
    present = [names[index] for index in indices]
    hot, indexed = (replace(column, label_format=form) for form in ("multi_hot", "indices"))
    typed, coded = (
        replace(column, class_names=column.names),
        replace(column, codes=tuple(map(str, range(len(names))))),
    )
    cases = [(column, value) for value in (present, tuple(present), ";".join(present), " ; ".join([*present, ""]))]
    cases += [(column, repr(present)), (column, str(np.array(present)) if present else "[]")]
    cases += [
        (one, value) for one in (indexed, typed, coded) for value in (indices, str(indices), [*map(float, indices)])
    ]
    for one, value in cases:
        assert one.encode({"label": value}) == expected
        assert one.keys({"label": value}) == tuple(present)
    for value in (expected, [*map(int, expected)], [*map(bool, expected)], str(expected), [*map(str, expected)]):
        assert hot.encode({"label": value}) == expected
        assert set(hot.keys({"label": value})) == set(present)
    assert column.encode({"label": [*map(bool, expected)]}) == expected
    if len(names) > 2:
        assert column.encode({"label": expected}) == column.encode({"label": str(expected)}) == expected


def test_lists_of_zeros_and_ones_that_can_be_read_in_two_ways_are_refused() -> None:
    """The rows [1, 0] and [0, 1] once had both labels each."""
    two, numbers = LabelColumn("label", MULTI, ("a", "b")), LabelColumn("label", MULTI, ("0", "1", "2"))
    for column, value in ((two, [1, 0]), (two, [0.0, 1.0]), (two, "[0, 1]"), (numbers, [0, 1, 0])):
        with pytest.raises(BadColumn, match=r"can be a 0 or 1 for each of the . labels, or a list .* `label_format`"):
            column.encode({"label": value})
    assert [two.encode({"label": value}) for value in ([0, 0], [1, 1], [True, False])] == [[0, 0], [1, 1], [1, 0]]
    assert [numbers.encode({"label": value}) for value in ([0, 1], [2], ["1", "0"])] == [
        [1, 1, 0],
        [0, 0, 1],
        [1, 1, 0],
    ]
    unknown = LabelColumn("label", MULTI)
    for value in ([1, 0], [0, 0, 1], [True], "[0 1 0]"):
        with pytest.raises(BadColumn, match="`labels` for the one, `label_format names` for the other"):
            unknown.keys({"label": value})
    assert replace(unknown, label_format="names").keys({"label": [1, 0]}) == ("1", "0")
    assert unknown.keys({"label": [3, 1]}) == ("3", "1")


@pytest.mark.parametrize("value", [[0, 1], [0, 1, 2], ["a", "b", "c"], [], "0|1"])
def test_multi_hot_rows_have_a_number_for_each_label(value: Any) -> None:
    column = LabelColumn("label", MULTI, NAMES, label_format="multi_hot")
    assert "has to be a 0 or 1 for each of the 3 labels" in refused(column, {"label": value})


def test_typed_classes_are_numbers_in_lists_too() -> None:
    column = LabelColumn("label", MULTI, NAMES, class_names=NAMES)
    assert column.encode({"label": [1, 0]}) == [1, 1, 0]
    assert "[0, 1, 0] has a label twice" in refused(column, {"label": [0, 1, 0]})


def test_a_text_that_looks_like_a_list_and_is_none_is_refused() -> None:
    assert "looks like a list, and cannot be read" in refused(
        LabelColumn("label", MULTI, NAMES), {"label": "[mild, a]"}
    )


def typed(names: tuple[str, ...], *class_names: str) -> LabelColumn:
    return LabelColumn("label", "single_label_classification", names, class_names=class_names)


def test_in_a_column_typed_as_classes_a_number_is_that_class_whatever_the_names() -> None:
    column = typed(("1", "2", "0"), "1", "2", "0")
    assert [column.encode({"label": value}) for value in (0, 1, 2, 1.0)] == [0, 1, 2, 1]
    assert column.keys({"label": 0}) == ("1",)
    assert column.encode({"label": "0"}) == 2  # a text is a name


@given(st.permutations(["benign", "malignant", "unknown", "0"]))
def test_the_numbers_of_classes_keep_their_names_in_whatever_order_these_are_given(names: list[str]) -> None:
    classes = ("malignant", "0", "benign", "unknown")
    column = typed(tuple(names), *classes)
    for number, name in enumerate(classes):
        assert column.keys({"label": number}) == column.keys({"label": name}) == (name,)
        assert names[int(column.encode({"label": number}))] == name  # type: ignore[arg-type]


def test_other_names_for_classes_are_in_their_order_and_some_of_them_are_all_there_are() -> None:
    renamed = typed(("harmless", "harmful"), "benign", "malignant")
    assert [renamed.encode({"label": value}) for value in (0, 1, "1", "harmful")] == [0, 1, 1, 1]
    some = typed(("malignant", "benign"), "benign", "unknown", "malignant")
    assert [some.encode({"label": value}) for value in (0, "0", 2)] == [1, 1, 0]
    assert "'unknown' is out of range: it is none of malignant, benign" in refused(some, {"label": 1})
    assert "'3' is out of range" in refused(some, {"label": 3})


def test_a_bad_item_among_several_labels() -> None:
    column = LabelColumn("label", MULTI, NAMES)
    assert "label 'fatal' is out of range" in refused(column, {"label": "mild|fatal"})
    assert "label '3' is out of range" in refused(replace(column, class_names=NAMES), {"label": [0, 3]})
    for item in (None, math.nan, [0]):
        assert "is neither the name nor the number" in refused(column, {"label": ["mild", item]})
    for value in (3, {"mild": True}):
        assert "is neither a list nor a text of labels" in refused(column, {"label": value})


# A number


@given(st.floats(-3.4e38, 3.4e38) | st.integers(-(10**38), 10**38))
def test_numbers_as_they_are_or_as_text(number: float) -> None:
    column = LabelColumn("score", "regression")
    for value in (number, repr(number), f" {number!r}\n"):
        assert column.encode({"score": value}) == float(number)
        assert column.keys({"score": value}) == ()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("high", "'high' is not a number"),
        ("", "'' is not a number"),
        ([1.0], "[1.0] is not a number"),
        (10**400, "is not a number"),
        (1e39, "1e+39 is not a finite number of float32"),
        (math.inf, "inf is not a finite number"),
        ("-inf", "'-inf' is not a finite number"),
        ("nan", "'nan' is not a finite number"),
    ],
)
def test_values_that_are_no_number(value: Any, said: str) -> None:
    column = LabelColumn("score", "regression")
    assert said in refused(column, {"score": value})
    with pytest.raises(BadRow):
        column.keys({"score": value})


# Names found in the data


@given(st.lists(words | st.integers().map(str), min_size=2), st.randoms())
def test_names_have_one_order_however_they_come(keys: list[str], random: Any) -> None:
    assume(len(set(keys)) >= 2)
    names = sorted_names(keys, "label")
    assert sorted(names) == sorted(set(keys))
    shuffled = [*keys, keys[0]]
    random.shuffle(shuffled)
    assert sorted_names(shuffled, "label") == names


def test_numbers_are_sorted_by_size_and_before_texts() -> None:
    keys = ["b", "10", "-1", "2", "a", "0"]
    assert sorted_names(keys, "label") == ("-1", "0", "2", "10", "a", "b")


def test_numbers_of_one_size_have_one_order_too() -> None:
    """Else it would be that of a set of strings, another one in each process."""
    assert sorted_names(["1", "0001", "01", "001", "00001"], "label") == ("00001", "0001", "001", "01", "1")


@pytest.mark.parametrize("keys", [[], ["only", "only"]])
def test_too_few_names(keys: list[str]) -> None:
    with pytest.raises(ValueError, match=rf"column 'label' has {len(set(keys))} different labels: .* at least 2"):
        sorted_names(keys, "label")


def test_too_many_names_to_be_classes() -> None:
    assert len(sorted_names(map(str, range(1000)), "note")) == 1000
    with pytest.raises(ValueError, match=r"column 'note' has 1001 different labels.*`problem regression`.*`labels`"):
        sorted_names(map(str, range(1001)), "note")


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification"])
def test_a_label_with_a_lone_surrogate_is_a_bad_row(problem: Any) -> None:
    """Also while no names are known: it could not be written into the run's folder."""
    with pytest.raises(BadRow, match=r"field 'label': not UTF-8 \(a lone surrogate\)"):
        LabelColumn("label", problem).keys({"label": "asthma\ud83d"})
