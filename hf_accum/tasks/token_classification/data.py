"""A dataset of texts whose words have tags: entities in the scheme BIO, long texts in overlapping parts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.formats.rows import BadRow, value_of
from hf_accum.data.source import Row, in_parts
from hf_accum.data.split import Observed, SplitData, open_split
from hf_accum.distributed.ranks import Ranks
from hf_accum.errors import UserError, shortened, shown
from hf_accum.tasks.tokenization import count_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OUTSIDE = "O"
MOST_PARTS = 4_096
"""Of one text."""
_MOST_TYPES = 500
_SAME_WORDS = "words of the text"


@dataclass(frozen=True)
class TagColumns:
    """How a row's words and their tags are read: two lists of one length.

    A tag is O, B-TYPE or I-TYPE, or its number where the column is typed as classes (`names`). Tags in other
    schemes, of which every one is B or I in BIO, are refused.
    """

    words: str
    tags: str
    names: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    """All there are; empty: any."""

    def read(self, row: Row) -> tuple[list[str], list[str]]:
        """A row's words, and the tag of each.

        Raises:
            BadRow: if either is missing, empty or no list, if their numbers differ, or one is no word or tag.
        """
        words, tags = self._list(row, self.words), self._list(row, self.tags)
        if len(words) != len(tags):
            raise BadRow(self.tags, f"{len(tags):,} tags for {len(words):,} words: each word has to have one")
        for word in words:
            if not isinstance(word, str) or not word.strip():
                raise BadRow(self.words, f"{shown(word)} is no word")
        return words, [self._tag(tag) for tag in tags]

    def _list(self, row: Row, column: str) -> list[Any]:
        value = value_of(row, column)
        if not isinstance(value, list | tuple):
            raise BadRow(column, f"{shown(value)} is a {type(value).__name__}, not a list")
        if not value:
            raise BadRow(column, "an empty list")
        return list(value)

    def _tag(self, value: Any) -> str:
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(self.names):
            value = self.names[value]
        if not isinstance(value, str) or (value != OUTSIDE and (value[:2] not in ("B-", "I-") or len(value) == 2)):
            raise BadRow(self.tags, f"{shown(value)} is no tag: it has to be O, B-TYPE or I-TYPE")
        if self.types and value != OUTSIDE and value[2:] not in self.types:
            known = shortened(", ".join(self.types), 300)
            raise BadRow(self.tags, f"{shown(value)} is of no known type: it has to be one of {known}")
        return value


def labels_of(types: Sequence[str]) -> tuple[str, ...]:
    """The tags of entity types: O first, then B and I of each."""
    return (OUTSIDE, *(f"{place}-{name}" for name in types for place in "BI"))


def types_of(tags: Sequence[str]) -> tuple[str, ...]:
    """The entity types among tags, sorted."""
    return tuple(sorted({tag[2:] for tag in tags if tag != OUTSIDE}))


@dataclass(frozen=True, kw_only=True)
class TaggedTexts(SplitData):
    """The dataset, cut into parts, with its entity types."""

    columns: TagColumns
    types: tuple[str, ...]

    @property
    def notes(self) -> list[str]:
        """Types that no text to train on has, as far as they were counted."""
        return self.notes_of_missing("no text to train on has an entity of type", self.types)


@dataclass(frozen=True)
class Part:
    """Some consecutive words of a text. Those from `first` up to `last` count; the others are their context."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    first: int
    last: int


def cut_text(num_tokens: Sequence[int], most: int, overlap: int) -> list[tuple[int, int, int, int]]:
    """Cut words of so many tokens each into parts of at most `most` tokens: (start, end, first, last) by words.

    Neighbouring parts share up to `overlap` tokens; of these the first half counts in the one, the second in the
    other, so that each word counts once, where it has most context. A word of more than `most` tokens is a part.
    """
    parts: list[tuple[int, int, int, int]] = []
    start, first = 0, 0
    while True:
        end, total = start, 0
        while end < len(num_tokens) and (total + num_tokens[end] <= most or end == start):
            total += num_tokens[end]
            end += 1
        if end == len(num_tokens):
            parts.append((start, end, first, end))
            return parts
        following, shared = end, 0
        while following - 1 > start and shared + num_tokens[following - 1] <= overlap:
            following -= 1
            shared += num_tokens[following]
        last = (following + end + 1) // 2
        parts.append((start, end, first, last))
        start, first = following, last


def open_tagged_texts(
    dataset: str,
    ranks: Ranks,
    config: RecipeConfig,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    words_column: str,
    tags_column: str,
    group_column: str | None,
    types: tuple[str, ...],
    overlap: int,
) -> TaggedTexts:
    """Open the dataset and, where the entity types or its size are needed and not known, read it once.

    Texts of more than `config.max_length` tokens are cut into parts that share `overlap` tokens. Without a
    `group_column` texts of the same words are on one side of the split.

    Raises:
        UserError: for a dataset, column or row that cannot be used.
    """
    opened = open_split(dataset, [words_column, tags_column], config, group_column=group_column or words_column)
    columns = TagColumns(words_column, tags_column, opened.source.class_names.get(tags_column, ()), types)
    most = config.max_length - tokenizer.num_special_tokens_to_add()
    if most < 1:
        raise UserError(f"`max_length` {config.max_length}: has to leave place for words beside the special tokens")

    def parts_of(row: Row) -> list[Row]:
        words, tags = columns.read(row)
        same_words = " ".join(words)
        parts = []
        for start, end, first, last in cut_text(count_tokens(tokenizer, words), most, overlap):
            of_part = {words_column: words[start:end], tags_column: tags[start:end]}
            places = {"first": first - start, "last": last - start, _SAME_WORDS: same_words}
            parts.append({**row, **of_part, **places})
        return parts

    known = types or types_of(columns.names)
    parts = opened.with_rows(lambda source: in_parts(source, parts_of, MOST_PARTS), group_column or _SAME_WORDS)
    data = TaggedTexts(columns=replace(columns, types=known), types=known, **vars(parts))
    if config.num_epochs is None and known:
        return data

    def observe(row: Row) -> Observed:
        words, tags = columns.read(row)
        return types_of(tags), (words, tags)

    data = data.surveyed(observe, ranks, config.on_bad_row)
    if not known:
        known = tuple(sorted({*data.label_counts, *data.held_out_label_counts}))
    if not 1 <= len(known) <= _MOST_TYPES:
        raise UserError(
            f"column {tags_column!r} has {len(known)} types of entities: there have to be 1 to {_MOST_TYPES}"
        )
    return replace(data, columns=replace(columns, types=known), types=known)
