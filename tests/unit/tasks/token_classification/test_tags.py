"""Tags: every scheme tells the same entities, as seqeval and conlleval read them."""

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from hf_accum.tasks.token_classification.tags import (
    Entity,
    entities_of,
    labels_of,
    longest_of,
    scheme_of,
    signs_of_scheme,
    split_tag,
    tags_of,
    types_of,
)

tags_of_any_scheme = st.lists(st.sampled_from(["O", *(f"{place}-{name}" for place in "BIES" for name in ("a", "b"))]))
spans = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4), st.sampled_from("ab")), max_size=8)


@given(tags_of_any_scheme)
def test_entities_are_those_of_seqeval(tags: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [Entity(first, last + 1, name) for name, first, last in get_entities(tags)]
    assert entities_of(tags) == expected


def apart(gaps_and_lengths: list[tuple[int, int, str]]) -> tuple[list[Entity], int]:
    """Entities one after the other, with gaps between, and the number of words."""
    entities, end = [], 0
    for gap, length, name in gaps_and_lengths:
        entities.append(Entity(end + gap, end + gap + length, name))
        end += gap + length
    return entities, end + 1


def written(entities: list[Entity], num_words: int, scheme: str) -> list[str]:
    """The tags by the definition of each scheme."""
    tags = ["O"] * num_words
    for before, entity in zip([None, *entities], entities, strict=False):
        size = entity.last - entity.first
        touches = before is not None and before.last == entity.first and before.type == entity.type
        first = "B" if scheme != "IOB1" or touches else "I"
        middle = "M" if scheme == "BMEWO" else "I"
        letters = [first, *[middle] * (size - 1)]
        single, end = {"IOBES": "SE", "BILOU": "UL", "BMEWO": "WE"}.get(scheme, ("", ""))
        if single:
            letters[-1] = end
            letters = [single] if size == 1 else letters
        tags[entity.first : entity.last] = [f"{letter}-{entity.type}" for letter in letters]
    return tags


@given(spans, st.sampled_from(["IOB1", "IOB2", "IOBES", "BILOU", "BMEWO"]))
def test_every_scheme_is_read_and_found(drawn: list[tuple[int, int, str]], scheme: str) -> None:
    entities, num_words = apart([(0, 3, "a"), (1, 1, "b"), *drawn])  # of which every scheme shows
    tags = written(entities, num_words, scheme)
    assert entities_of(tags) == entities
    assert tags_of(entities, num_words) == tuple(written(entities, num_words, "IOB2"))
    assert scheme_of(signs_of_scheme(tags)) == scheme


def test_a_mix_is_said() -> None:
    signs = signs_of_scheme(["O", "B-a", "O", "I-a"])
    assert scheme_of(signs) == "IOB1 and IOB2, mixed"
    assert scheme_of(signs_of_scheme(["B-a", "I-a", "O", "B-b"])) == "IOB2"
    assert scheme_of(signs_of_scheme(["I-a", "B-a"])) == "IOB1"


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5), st.sampled_from("ab")), max_size=8))
def test_of_those_that_overlap_the_longest_is_kept(drawn: list[tuple[int, int, str]]) -> None:
    entities = [Entity(first, first + size, name) for first, size, name in drawn]
    kept = longest_of(entities)
    words = [word for entity in kept for word in range(entity.first, entity.last)]
    assert len(words) == len(set(words))
    for entity in set(entities) - set(kept):
        assert any(
            other.first < entity.last
            and entity.first < other.last
            and other.last - other.first >= entity.last - entity.first
            for other in kept
        )


@pytest.mark.parametrize("tag", ["", "sign", "B-", "X-sign", "o", "-100", "B_sign", "BB"])
def test_what_is_no_tag(tag: str) -> None:
    assert split_tag(tag) is None


def test_labels_and_types() -> None:
    assert split_tag("U-cell-type") == ("S", "cell-type")
    assert split_tag("B") == ("B", "entity")
    assert labels_of(("a", "b")) == ("O", "B-a", "I-a", "B-b", "I-b")
    assert labels_of(("a", "b"), in_layers=True) == ("O-a", "B-a", "I-a", "O-b", "B-b", "I-b")
    assert types_of(labels_of(("b", "a"))) == ("a", "b")
