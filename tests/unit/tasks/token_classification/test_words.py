"""Words of running texts: what models of languages know as words, and none of it lost."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_accum.tasks.token_classification.words import places_of_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("T2DM's 5mg/kg.", ["T2DM", "'", "s", "5mg", "/", "kg", "."]),
        ("e\u0301te\u0301 hyper\u00adtension", ["e\u0301te\u0301", "hyper\u00adtension"]),
        ("\ufeffno\u200bfever\u200d \t\n", ["no", "fever"]),
        ("患者没有 fever发烧", ["患", "者", "没", "有", "fever", "发", "烧"]),
        ("___ ❤️", ["_", "_", "_", "❤️"]),
        (" \n\x00", []),
    ],
)
def test_words_are_runs_of_letters_and_single_signs(text: str, words: list[str]) -> None:
    assert [text[start:end] for start, end in places_of_words(text)] == words


@given(st.text())
def test_each_character_is_in_one_word_or_is_none_that_is_seen(text: str) -> None:
    covered = [0] * len(text)
    for start, end in places_of_words(text):
        assert start < end
        for place in range(start, end):
            covered[place] += 1
    assert max(covered, default=0) <= 1
    for character, times in zip(text, covered, strict=True):
        assert times or unicodedata.category(character)[0] in "ZCM", repr(character)
