"""Texts of tagged words: cut so that each word counts once, read as they are, refused by name."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_tokenizer

from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.formats.rows import BadRow
from hf_accum.data.source import Source, in_parts
from hf_accum.distributed.ranks import OneRank
from hf_accum.tasks.token_classification.data import TaggedTexts, cut_text, open_tagged_texts
from hf_accum.tasks.token_classification.files import Columns


@settings(max_examples=300, deadline=None)
@given(
    num_tokens=st.lists(st.integers(0, 9), min_size=1, max_size=60),
    most=st.integers(1, 20),
    overlap=st.integers(0, 19),
)
def test_each_word_counts_once_and_no_part_is_too_long(num_tokens: list[int], most: int, overlap: int) -> None:
    parts = cut_text(num_tokens, most, overlap)
    assert [word for _, _, first, last in parts for word in range(first, last)] == list(range(len(num_tokens)))
    for start, end, first, last in parts:
        assert start <= first <= last <= end
        assert sum(num_tokens[start:end]) <= most or end == start + 1
    for (start, end, _, last), (following, _, _, _) in itertools.pairwise(parts):
        assert start < following <= end
        assert sum(num_tokens[following:end]) <= overlap
        # The shared words are halved: neither side has more than one more.
        assert abs((last - following) - (end - last)) <= 1
    assert (len(parts) == 1) == (sum(num_tokens) <= most or len(num_tokens) == 1)


def test_a_text_that_fits_is_one_part() -> None:
    assert cut_text([3, 3, 3], 9, 4) == [(0, 3, 0, 3)]
    assert cut_text([3, 3, 3], 6, 3) == [(0, 2, 0, 2), (1, 3, 2, 3)]


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_parts_are_read_from_any_place_on(sizes: list[int]) -> None:
    """As if all of them had been read, and those before left out; no row before that of the place is asked for."""
    asked: list[int] = []

    def read(_: int, start: int) -> Any:
        asked.append(start)
        for number in range(start, len(sizes)):
            yield number, BadRow("x", "bad") if sizes[number] == 0 else {"size": sizes[number]}

    def parts_of(row: Any) -> list[Any]:
        return [{"part": index} for index in range(row["size"])]

    source = in_parts(Source(("rows",), read, {}), parts_of, most=5)
    everything = [(number, str(row)) for number, row in source.read(0, 0)]
    assert len({number for number, _ in everything}) == len(everything) == sum(size or 1 for size in sizes)
    for start in range(5 * len(sizes)):
        rest = [(number, str(row)) for number, row in source.read(0, start)]
        assert [item for item in rest if item[0] >= start] == [item for item in everything if item[0] >= start]
        assert asked[-1] == start // 5


def test_a_row_of_too_many_parts_is_a_bad_one() -> None:
    source = in_parts(Source(("rows",), lambda _, start: iter([(0, {})]), {}), lambda row: [row] * 6, most=5)
    ((number, bad),) = source.read(0, 0)
    assert number == 0
    assert "cut into 6 parts: it has to be at most 5" in str(bad)


COLUMNS = Columns("tokens", "tags", "text", None)


def opened(folder: Path, rows: list[dict[str, Any]], max_length: int = 8, **flags: Any) -> TaggedTexts:
    file = folder / "texts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    how: dict[str, Any] = {"columns": COLUMNS, "group_column": None, "types": ()} | flags
    config = RecipeConfig(max_length=max_length, eval_fraction=0.4)
    return open_tagged_texts(str(file), OneRank(), config, make_tokenizer(), overlap=2, **how)


def rows_of(number: int, length: int) -> list[dict[str, Any]]:
    return [
        {
            "tokens": [f"w{(index + place) % 40}" for place in range(length)],
            "tags": ["O", "B-b", "I-b", "B-a"] * length,
        }
        | {"tags": (["O", "B-b", "I-b", "B-a"] * length)[:length]}
        for index in range(number)
    ]


def test_the_survey_counts_parts_and_finds_the_types(tmp_path: Path) -> None:
    """Of 20 words 6 fit beside [CLS] and [SEP]; each further part brings 4."""
    data = opened(tmp_path, rows_of(30, 20))
    assert data.types == ("a", "b")
    assert (data.num_train or 0) + (data.num_held_out or 0) == 30 * 5
    assert (data.num_train or 0) % 5 == 0  # no text is on both sides
    assert opened(tmp_path, rows_of(30, 20), types=("b", "a")).types == ("b", "a")


def test_types_without_a_text_are_said(tmp_path: Path) -> None:
    data = opened(tmp_path, rows_of(30, 20), types=("b", "a", "c"))
    assert data.notes[-1] == "no text to train on has an entity of type c"


def test_a_length_that_leaves_no_place_for_words_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`max_length` 2: has to leave place for words"):
        opened(tmp_path, rows_of(3, 3), max_length=2)


def test_data_without_entities_is_refused(tmp_path: Path) -> None:
    rows = [{"tokens": [f"w{index}"], "tags": ["O"]} for index in range(30)]
    with pytest.raises(ValueError, match="has 0 types of entities"):
        opened(tmp_path, rows)


def test_the_row_of_a_bad_part_is_named(tmp_path: Path) -> None:
    rows = rows_of(5, 20)
    rows[3]["tags"] = ["O"]
    with pytest.raises(ValueError, match=r"texts\.jsonl, row 4: field 'tags': 1 tags for 20 words"):
        opened(tmp_path, rows)
