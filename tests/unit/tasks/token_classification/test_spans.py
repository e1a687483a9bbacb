"""Entities by characters: each tool's way of writing them, and each way of being wrong."""

from typing import Any

import pytest

from hf_accum.data.formats.rows import BadRow
from hf_accum.tasks.token_classification.spans import DISCONTINUOUS, TRIMMED, Span, entities_among, spans_of
from hf_accum.tasks.token_classification.tags import Entity
from hf_accum.tasks.token_classification.words import places_of_words

TEXT = "took aspirin 5mg, no\nfever"


@pytest.mark.parametrize(
    "values",
    [
        [{"start": 5, "end": 12, "label": "drug"}],
        [{"start": 5, "end": 12, "label": "drug", "text": "aspirin", "token_start": 1}],
        [{"start_offset": 5, "end_offset": 12, "label": "drug", "id": 7}],
        [{"begin": 5, "end": 12.0, "type": "drug"}],
        [{"start": 5, "end": 12, "labels": ["drug"], "text": None}],
        [[5, 12, "drug"]],
        {"start": [5], "end": [12], "label": ["drug"]},
    ],
)
def test_each_tool_is_read(values: Any) -> None:
    (span,) = spans_of(values, "entities")
    assert (span.start, span.end, span.label) == (5, 12, "drug")
    assert entities_among([span], TEXT, places_of_words(TEXT), "entities")[0] == [Entity(1, 2, "drug")]


def test_no_entities_are_none() -> None:
    assert spans_of([], "entities") == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("drug", "'drug' is no list of entities"),
        ([5, 12, "drug"], "entity 1: 5 is no entity: it has to have `start`, `end` and `label`"),
        ([[5, 12]], "entity 1: [5, 12] is no entity"),
        ([[5, 12, "drug"], [5, "x", "drug"]], "entity 2: its end 'x' is no whole number"),
        ([[5.5, 12, "drug"]], "entity 1: its start 5.5 is no whole number"),
        ([[float("inf"), 12, "drug"]], "its start inf is no whole number"),
        ([[True, 12, "drug"]], "its start True is no whole number"),
        ([{"end": 12, "label": "drug"}], "its start None is no whole number"),
        ([[5, 12, ""]], "its label '' is no name"),
        ([{"start": 5, "end": 12, "labels": ["a", "b"]}], "its label ['a', 'b'] is no name"),
        ([{"start": 5, "end": 12, "label": "drug", "text": 3}], "its text 3 is of type int, not a text"),
        ({"start": [5], "end": [12, 3], "label": ["drug"]}, "has lists of different lengths"),
        ([[5, 12, "drug"], [20, 40, "sign"]], "entity 2: characters 20 to 40 are no part of the text, which has 26"),
        ([[-3, 2, "drug"]], "characters -3 to 2 are no part of the text"),
        ([[7, 7, "drug"]], "characters 7 to 7 are no part of the text"),
        ([[5, 9, "drug"]], "entity 1: 'aspi' cuts the word 'aspirin' (characters 5 to 12)"),
        ([[13, 14, "dose"]], "'5' cuts the word '5mg' (characters 13 to 16)"),
        ([[7, 16, "drug"]], "'pirin 5mg' cuts the word 'aspirin'"),
        ([[4, 5, "drug"]], "' ' has no word in it"),
        (
            [{"start": 5, "end": 12, "label": "drug", "text": "5mg"}],
            "entity 1: says '5mg', and characters 5 to 12 are 'aspirin'",
        ),
    ],
)
def test_what_is_wrong_is_said(values: Any, said: str) -> None:
    with pytest.raises(BadRow) as error:
        entities_among(spans_of(values, "entities"), TEXT, places_of_words(TEXT), "entities")
    assert str(error.value).startswith("field 'entities': ")
    assert said in str(error.value)


def test_what_is_taken_in_another_way_is_counted() -> None:
    values = [[4, 13, "drug"], {"start": 18, "end": 26, "label": "sign", "text": "no fever"}]
    spans = [*spans_of(values, "e"), Span(0, 16, "event", "took aspirin 5mg", "T3", is_discontinuous=True)]
    entities, counts = entities_among(spans, TEXT, places_of_words(TEXT), "e")
    assert entities == [Entity(1, 2, "drug"), Entity(4, 6, "sign"), Entity(0, 3, "event")]
    assert (counts[TRIMMED], counts[DISCONTINUOUS]) == (1, 1)
