"""How rows tell of entities: words with tags, or a text with entities by its characters."""

import ast
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

from hf_accum.data.formats.rows import BadRow, Row, check_unicode, value_of
from hf_accum.errors import shortened, shown
from hf_accum.tasks.token_classification.spans import entities_among, spans_of
from hf_accum.tasks.token_classification.tags import Entity, entities_of, signs_of_scheme, split_tag
from hf_accum.tasks.token_classification.words import places_of_words
from hf_accum.tasks.tokenization import text_of

CountTokens = Callable[[Sequence[str]], list[int]]
"""How many tokens each word of a text has."""
SIGN = "sign of the scheme: "


@dataclass(frozen=True)
class TaggedText:
    """A text, the places of its words by characters, how many tokens each has, and its entities, which may overlap.

    `counts` are of what has to be said of all texts.
    """

    text: str
    places: Sequence[tuple[int, int]]
    num_tokens: Sequence[int]
    entities: Sequence[Entity]
    counts: Counter[str]

    @property
    def words(self) -> list[str]:
        """Its words."""
        return [self.text[start:end] for start, end in self.places]


class Reader(Protocol):
    """How a row tells of entities."""

    @property
    def columns(self) -> tuple[str, str]:
        """What it needs of a row; by the first one equal texts are known."""
        ...

    def read(self, row: Row, count_tokens: CountTokens) -> TaggedText:
        """A row's text.

        Raises:
            BadRow: if the row cannot be used.
        """
        ...


@dataclass(frozen=True)
class TagColumns:
    """Words and their tags: two lists of one length, or two texts with spaces between.

    A tag is O, or a place in an entity and its type (B-TYPE, I-TYPE, and the letters of other schemes), or its
    number in `names`. The text is the words with spaces between.
    """

    words: str
    tags: str
    names: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    """All there are; empty: any."""

    @property
    def columns(self) -> tuple[str, str]:
        """Those of the words and of the tags."""
        return self.words, self.tags

    def read(self, row: Row, count_tokens: CountTokens) -> TaggedText:
        """A row's words with their entities.

        Raises:
            BadRow: if either is missing, empty or no list, if their numbers differ, or one is no word or tag.
        """
        words, tags = self.words_of(row), self._list(row, self.tags)
        if len(words) != len(tags):
            raise BadRow(self.tags, f"{len(tags):,} tags for {len(words):,} words: each word has to have one")
        for word in words:
            if not isinstance(word, str) or not word.strip():
                raise BadRow(self.words, f"{shown(word)} is no word")
            check_unicode(self.words, word)
        tags = [self._tag(tag) for tag in tags]
        ends = list(accumulate(words, lambda end, word: end + 1 + len(word), initial=-1))[1:]
        places = [(end - len(word), end) for word, end in zip(words, ends, strict=True)]
        counts = Counter(SIGN + sign for sign in signs_of_scheme(tags))
        return TaggedText(" ".join(words), places, count_tokens(words), entities_of(tags), counts)

    def words_of(self, row: Row) -> list[Any]:
        """A row's words alone, which `read` looks at.

        Raises:
            BadRow: if there is no list of them.
        """
        return self._list(row, self.words)

    def _list(self, row: Row, column: str) -> list[Any]:
        value = _as_written(value_of(row, column))
        if isinstance(value, str):
            value = value.split()
        if not isinstance(value, list | tuple):
            raise BadRow(column, f"{shown(value)} is of type {type(value).__name__}, not a list")
        if not value:
            raise BadRow(column, "an empty list")
        return list(value)

    def _tag(self, value: Any) -> str:
        number = int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 10 else value
        if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < len(self.names):
            value = self.names[number]
        split = split_tag(value) if isinstance(value, str) else None
        if split is None:
            numbers = f", of which those from 0 to {len(self.names) - 1} have a name so far" if self.names else ""
            of_numbers = f"; of numbers{numbers}, `labels` has to name the tags" if isinstance(number, int) else ""
            raise BadRow(self.tags, f"{shown(value)} is no tag: it has to be O, B-TYPE or I-TYPE{of_numbers}")
        check_unicode(self.tags, value)
        if self.types and split[1] and split[1] not in self.types:
            raise BadRow(self.tags, f"{shown(value)} is of no known type: {_known(self.types)}")
        return value


@dataclass(frozen=True)
class SpanColumns:
    """A text, and its entities by their characters: see `spans_of` for how they may be written.

    What the tokenizer makes no token of is between words, as spaces are.
    """

    text: str
    entities: str
    types: tuple[str, ...] = ()
    """All there are; empty: any."""

    @property
    def columns(self) -> tuple[str, str]:
        """Those of the text and of the entities."""
        return self.text, self.entities

    def read(self, row: Row, count_tokens: CountTokens) -> TaggedText:
        """A row's text with its entities.

        Raises:
            BadRow: if there is no text, or an entity that is none of its words.
        """
        text = text_of(row, self.text)
        spans = spans_of(_as_written(value_of(row, self.entities)), self.entities)
        for span in spans:
            check_unicode(self.entities, span.label)
            if self.types and span.label not in self.types:
                raise BadRow(
                    self.entities, f"{span.where}: {shown(span.label)} is of no known type: {_known(self.types)}"
                )
        places = places_of_words(text)
        counted = count_tokens([text[start:end] for start, end in places]) if places else []
        places = [place for place, number in zip(places, counted, strict=True) if number]
        if not places:
            raise BadRow(self.text, f"{shown(text)} has no word of which the tokenizer makes a token")
        entities, counts = entities_among(spans, text, places, self.entities)
        return TaggedText(text, places, [number for number in counted if number], entities, counts)


def _known(types: Sequence[str]) -> str:
    return f"it has to be one of {shortened(', '.join(types), 300)}"


def _as_written(value: Any) -> Any:
    """A list that is written out as a text, as tables without lists have it (JSON, or as Python and pandas write)."""
    if not isinstance(value, str) or not value.strip().startswith(("[", "{")):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            return read(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return value
