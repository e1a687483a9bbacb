"""Rows of words and tags, and of texts with entities: read as they are, refused by name."""

import json
from typing import Any

import pytest

from hf_accum.data.formats.rows import BadRow
from hf_accum.tasks.token_classification.reading import SIGN, SpanColumns, TagColumns
from hf_accum.tasks.token_classification.tags import Entity, scheme_of

ROW = {"tokens": ["no", "fever"], "tags": ["O", "B-sign"]}
NAMES = ("O", "B-sign", "I-sign")


def lengths(words: Any) -> list[int]:
    """A tokenizer of characters, which knows no bells."""
    return [len(word.replace("🔔", "")) for word in words]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"tokens": ["a"]}, "field 'tags': no such column; the row has tokens"),
        (ROW | {"tags": ["O"]}, "1 tags for 2 words: each word has to have one"),
        (ROW | {"tags": "O"}, "1 tags for 2 words: each word has to have one"),
        (ROW | {"tags": ["O", "sign"]}, "'sign' is no tag: it has to be O, B-TYPE or I-TYPE"),
        (ROW | {"tags": ["O", "B-"]}, "'B-' is no tag"),
        (ROW | {"tags": ["O", 3]}, "3 is no tag: it has to be O, B-TYPE or I-TYPE; of numbers, `labels` has to name"),
        (ROW | {"tags": ["O", -100]}, "-100 is no tag"),
        (ROW | {"tags": ["O", True]}, "True is no tag"),
        (ROW | {"tags": ["O", "B-drug"]}, "'B-drug' is of no known type: it has to be one of sign"),
        (ROW | {"tags": ["O", "U-drug"]}, "'U-drug' is of no known type"),
        (ROW | {"tokens": ["no", " "]}, "' ' is no word"),
        (ROW | {"tokens": ["no", 7]}, "7 is no word"),
        (ROW | {"tokens": ["no", "f\ud800ver"]}, "field 'tokens': not UTF-8 (a lone surrogate)"),
        (ROW | {"tokens": 7}, "7 is of type int, not a list"),
        ({"tokens": [], "tags": []}, "an empty list"),
        ({"tokens": " ", "tags": "O"}, "an empty list"),
    ],
)
def test_what_is_wrong_with_tags_is_said(row: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRow) as error:
        TagColumns("tokens", "tags", types=("sign",)).read(row, lengths)
    assert said in str(error.value)


def test_a_type_with_a_lone_surrogate_is_a_bad_row() -> None:
    for reader, row in (
        (TagColumns("tokens", "tags"), ROW | {"tags": ["O", "B-\ud800"]}),
        (SpanColumns("text", "tags"), {"text": "fever", "tags": [[0, 5, "\ud800"]]}),
    ):
        with pytest.raises(BadRow, match="field 'tags': not UTF-8"):
            reader.read(row, lengths)


@pytest.mark.parametrize(
    ("names", "changes"),
    [
        ((), {}),
        (NAMES, {}),
        (NAMES, {"tags": [0, 1]}),
        (NAMES, {"tags": "0 1"}),
        ((), {"tags": "O B-sign"}),
        ((), {"tokens": "no fever", "tags": " O  B-sign "}),
        ((), {"tokens": "['no', 'fever']", "tags": '["O", "S-sign"]'}),
        ((), {"tags": ("O", "U-sign")}),
    ],
)
def test_every_way_to_write_words_and_tags(names: tuple[str, ...], changes: dict[str, Any]) -> None:
    text = TagColumns("tokens", "tags", names=names).read(ROW | changes, lengths)
    assert (text.text, text.words, text.places) == ("no fever", ["no", "fever"], [(0, 2), (3, 8)])
    assert text.entities == [Entity(1, 2, "sign")]
    assert text.num_tokens == [2, 5]


def test_the_scheme_is_told_by_the_counts() -> None:
    text = TagColumns("tokens", "tags").read(ROW | {"tags": ["O", "U-sign"]}, lengths)
    assert scheme_of({key.removeprefix(SIGN) for key in text.counts}) == "BILOU"


def test_a_text_is_read_with_its_entities() -> None:
    entities = [[3, 8, "sign"]]
    for written in (entities, json.dumps(entities), str(entities)):
        text = SpanColumns("text", "entities").read({"text": "no fever.", "entities": written}, lengths)
        assert (text.words, text.places) == (["no", "fever", "."], [(0, 2), (3, 8), (8, 9)])
        assert text.entities == [Entity(1, 2, "sign")]


def test_what_has_no_token_is_between_words() -> None:
    text = SpanColumns("text", "entities").read({"text": "no 🔔 fever", "entities": [[3, 10, "sign"]]}, lengths)
    assert text.words == ["no", "fever"]
    assert text.entities == [Entity(1, 2, "sign")]
    assert text.counts["trimmed"] == 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"entities": []}, "field 'text': no such column"),
        ({"text": "fever"}, "field 'entities': no such column"),
        ({"text": None, "entities": []}, "no text (null or NaN)"),
        ({"text": "f\ud800ver", "entities": []}, "field 'text': not UTF-8"),
        ({"text": "🔔", "entities": []}, "has no word of which the tokenizer makes a token"),
        ({"text": "\u200b", "entities": []}, "has no word of which the tokenizer makes a token"),
        ({"text": "fever", "entities": None}, "None is no list of entities"),
        ({"text": "fever", "entities": "[[0, 5"}, "'[[0, 5' is no list of entities"),
        (
            {"text": "fever", "entities": [[0, 5, "drug"]]},
            "entity 1: 'drug' is of no known type: it has to be one of",
        ),
    ],
)
def test_what_is_wrong_with_entities_is_said(row: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRow) as error:
        SpanColumns("text", "entities", types=("sign",)).read(row, lengths)
    assert said in str(error.value)
