"""A text of several columns: against Python's own formatting, and what is said of rows that lack something."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_accum.data.source import BadRow, Source
from hf_accum.tasks.text_template import TextTemplate, with_texts

literals = st.text("ab {}:.\n", max_size=6)
columns = st.sampled_from(["age", "note", "ward"])
values = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip) | st.integers()


@given(
    pieces=st.lists(st.tuples(literals, columns), min_size=1, max_size=5),
    end=literals,
    row=st.fixed_dictionaries(dict.fromkeys(("age", "note", "ward"), values)),
)
def test_it_is_what_python_formats(pieces: list[tuple[str, str]], end: str, row: dict[str, Any]) -> None:
    def doubled(text: str) -> str:
        return text.replace("{", "{{").replace("}", "}}")

    template = "".join(f"{doubled(text)}{{{column}}}" for text, column in pieces) + doubled(end)
    assert TextTemplate(template).fill(row) == template.format(**row)


def test_any_name_is_one_of_a_column() -> None:
    template = TextTemplate("{lab: value} of {Größe [cm]!}, {0}")
    assert template.columns == ("lab: value", "Größe [cm]!", "0")
    assert template.fill({"lab: value": "{x}", "Größe [cm]!": 3.5, "0": True}) == "{x} of 3.5, True"


def test_a_whole_number_has_no_point() -> None:
    """As in a column of whole numbers that became one of floats, since one is missing."""
    assert TextTemplate("Age {age}").fill({"age": 63.0}) == "Age 63"


@pytest.mark.parametrize("value", [None, float("nan"), "", " \t"])
def test_a_missing_value_is_a_bad_row_or_nothing(value: object) -> None:
    row = {"age": value, "note": "cough"}
    with pytest.raises(BadRow, match="no text") as bad:
        TextTemplate("Age {age}: {note}").fill(row)
    assert bad.value.field == "age"
    assert bad.value.way_out == "mend the row, or have nothing stand there by `on_missing_text empty`"
    template = TextTemplate("Age {age}: {note}", "empty")
    assert template.fill(row) == "Age : cough"
    assert template.empty_in(row) == ("age",)
    with pytest.raises(BadRow, match="nothing stands in age, note"):
        template.fill({"age": value, "note": value})


@pytest.mark.parametrize("on_missing", ["error", "empty"])
@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"notes": "cough"}, "'note': no such column; the row has notes"),
        ({"note": ["a"]}, "is of type list, not a text"),
    ],
)
def test_what_is_no_value_is_a_bad_row_always(row: dict[str, Any], said: str, on_missing: Any) -> None:
    with pytest.raises(BadRow, match=said):
        TextTemplate("{note}", on_missing).fill(row)


@pytest.mark.parametrize("template", ["", "note", "{{note}}", "{}", "{note", "note}", "{a} }", "{{a}", "{a{b}}"])
def test_a_template_that_names_no_column_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"^`text_template` "):
        TextTemplate(template)


def test_rows_have_their_text_under_the_template_s_name() -> None:
    bad = BadRow("", "not JSON")

    def read(shard: int, start: int) -> Iterator[tuple[int, Any]]:
        yield from list(enumerate([{"a": "x"}, bad, {"b": "y"}, {"a": 2}]))[start:]

    found = dict(with_texts(Source(("one",), read, {}), TextTemplate("<{a}>")).read(0, 1))
    assert found[1] is bad
    assert isinstance(found[2], BadRow)
    assert found[3] == {"a": 2, "<{a}>": "<2>"}
