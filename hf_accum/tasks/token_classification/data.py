"""A dataset of texts with entities: read as it is annotated, long texts in overlapping parts."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import chain, islice
from operator import add
from typing import TYPE_CHECKING, Literal

from hf_accum.config.datasets import Datasets, parts_of
from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.formats.rows import BadRow
from hf_accum.data.source import Row, Source, in_parts
from hf_accum.data.split import SplitData, open_split
from hf_accum.data.survey import Observed
from hf_accum.distributed.ranks import Ranks
from hf_accum.errors import UserError, shortened
from hf_accum.tasks.labels import found_names, names_of_classes
from hf_accum.tasks.token_classification.files import Columns
from hf_accum.tasks.token_classification.reading import SIGN, Reader, SpanColumns, TagColumns, TaggedText
from hf_accum.tasks.token_classification.spans import DISCONTINUOUS, SPAN_COLUMNS, TRIMMED
from hf_accum.tasks.token_classification.tags import (
    OUTSIDE,
    Entity,
    Tags,
    longest_of,
    scheme_of,
    split_tag,
    tags_of,
    types_of,
)
from hf_accum.tasks.tokenization import count_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Nested = Literal["longest", "each_label"]
MOST_PARTS = 4_096
"""Of one text."""
_MOST_TYPES = 500
_NUM_LOOKED_AT = 100
# Columns of a row that is a part, by names that a dataset's own column, by which it is split, will not have.
_SAME_WORDS, _PART, _COUNTS = "words of the text", "part of the text", "counts of the text"
_ENTITIES, _OVERLAPPING, _TYPE = "entities", "overlapping", "type: "


@dataclass(frozen=True, kw_only=True)
class TaggedTexts(SplitData):
    """The dataset, cut into parts, with its entity types."""

    reader: Reader
    types: tuple[str, ...]
    nested: Nested = "longest"
    counts: Counter[str] | None = None
    """Of what is said of all texts; None: they were not read."""

    @property
    def names(self) -> tuple[str, ...]:
        """What tags that are numbers mean, as far as is known."""
        return self.reader.names if isinstance(self.reader, TagColumns) else ()

    @property
    def notes(self) -> list[str]:
        """How the texts are annotated, what of it was left out, and types that no text to train on has."""
        of_files = dict.fromkeys([*self.source.notes, *self.eval_source.notes])
        missing = self.notes_of_missing("no text to train on has an entity of type", self.types)
        return [*of_files, *self._notes_of_counts(), *super().notes, *missing]

    def _notes_of_counts(self) -> list[str]:
        if self.counts is None:
            return []
        columns = " and ".join(map(repr, self.reader.columns))
        signs = {sign.removeprefix(SIGN) for sign in self.counts if sign.startswith(SIGN)}
        how = f"by tags in the scheme {scheme_of(signs)}" if signs else "by the characters of texts"
        said = [f"{self.counts[_ENTITIES]:,} entities, {how} (columns {columns})"]
        if number := self.counts[DISCONTINUOUS]:
            said.append(f"{number:,} entities have gaps: each is taken from its first to its last character")
        if number := self.counts[TRIMMED]:
            said.append(
                f"{number:,} entities begin or end with what is no word (spaces): these characters are left out"
            )
        if number := self.counts[_OVERLAPPING]:
            of, way_out = "", "; `nested each_label` keeps those of different types"
            if self.nested == "each_label":
                of, way_out = " of one type", ""
            said.append(
                f"{number:,} entities are left out: of those{of} that overlap the longest is kept (of equal ones the "
                f"first){way_out}"
            )
        return said


@dataclass(frozen=True)
class Part:
    """Some consecutive words of a text. Those from `first` up to `last` count; the others are their context.

    Each of the layers has a tag for each word. `places` are those of the words that count, by characters of the whole
    text, whose characters from `start` on, up to the next part's, are `text`.
    """

    words: tuple[str, ...]
    layers: tuple[Tags, ...]
    first: int
    last: int
    places: tuple[tuple[int, int], ...] = ()
    start: int = 0
    text: str = ""


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


@dataclass(frozen=True)
class Cutting:
    """How texts are cut into parts: of at most `most` tokens without special ones, sharing `overlap`.

    Nested entities are kept in a layer of tags for `each_label` (of `types`; of a text's own where they are not known
    yet), or all in one, the `longest`.
    """

    tokenizer: "PreTrainedTokenizerBase"
    most: int
    overlap: int
    nested: Nested
    types: tuple[str, ...]

    def parts_of(self, row: Row, reader: Reader) -> list[Row]:
        """The rows of a row's parts; the first has the counts of the text too.

        Raises:
            BadRow: if the row cannot be used.
        """
        text = reader.read(row, partial(count_tokens, self.tokenizer))
        words, kept = text.words, self._layers(text)
        layers = [tags_of(entities, len(words)) for entities in kept]
        counts = text.counts + Counter(_TYPE + entity.type for entity in text.entities)
        counts[_ENTITIES] = len(text.entities)
        counts[_OVERLAPPING] = len(text.entities) - sum(map(len, kept))
        cuts = cut_text(text.num_tokens, self.most, self.overlap)
        # A part's characters go up to the first word that counts in the next one.
        starts = [0, *(text.places[first][0] for _, _, first, _ in cuts[1:]), len(text.text)]
        same_words = " ".join(words)
        rows = []
        for index, (start, end, first, last) in enumerate(cuts):
            part = Part(
                tuple(words[start:end]),
                tuple(tags[start:end] for tags in layers),
                first - start,
                last - start,
                tuple(text.places[first:last]),
                starts[index],
                text.text[starts[index] : starts[index + 1]],
            )
            rows.append({**row, _SAME_WORDS: same_words, _PART: part, _COUNTS: Counter() if index else counts})
        return rows

    def _layers(self, text: TaggedText) -> list[list[Entity]]:
        if self.nested == "longest":
            return [longest_of(text.entities)]
        types = self.types or sorted({entity.type for entity in text.entities})
        return [longest_of(entity for entity in text.entities if entity.type == name) for name in types]


def part_of(row: Row) -> Part:
    """The part of a text that a row of the opened dataset is."""
    return row[_PART]


def open_tagged_texts(
    dataset: Datasets,
    ranks: Ranks,
    config: RecipeConfig,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    columns: Columns,
    group_column: str | None,
    types: tuple[str, ...],
    overlap: int,
    earlier_types: tuple[str, ...] = (),
    names: tuple[str, ...] = (),
    earlier_names: tuple[str, ...] = (),
    nested: Nested = "longest",
) -> TaggedTexts:
    """Open the dataset and, where its entity types, its size or what is to be said of it are not known, read it once.

    Texts of more than `config.max_length` tokens are cut into parts that share `overlap` tokens. Without a
    `group_column` texts of the same words are on one side of the split. `names` are those of tags that are numbers,
    unless the column is typed as classes that are tags; where there are none either, numbers mean what they did in a
    run that this one starts from (`earlier_names`). Its types, `earlier_types`, keep their places, and those that are
    new in the data come behind them.

    Raises:
        UserError: for a dataset, column or row that cannot be used.
    """
    reader = _reader_for(dataset, config, columns, types)
    opened = open_split(
        dataset, reader.columns, config, group_column=group_column or reader.columns[0], opener=columns.open
    )
    known = types
    if isinstance(reader, TagColumns):
        typed = opened.source.class_names.get(reader.tags, ())
        names = typed if typed and (not names or all(map(split_tag, typed))) else names
        reader = replace(reader, names=names or earlier_names)
        known = types or names_of_classes(types_of(names), earlier_types, reader.tags)
    most = config.max_length - tokenizer.num_special_tokens_to_add()
    if most < 1:
        raise UserError(f"`max_length` {config.max_length}: has to leave place for words beside the special tokens")

    def cut(types: tuple[str, ...]) -> TaggedTexts:
        cutting = Cutting(tokenizer, most, overlap, nested, types)
        of_types = replace(reader, types=types)

        def change(source: Source) -> Source:
            parts = in_parts(source, lambda row: cutting.parts_of(row, of_types), MOST_PARTS)
            return replace(parts, notes=source.notes)

        parts = opened.with_rows(change, group_column or _SAME_WORDS)
        return TaggedTexts(reader=of_types, types=types, nested=nested, **vars(parts))

    data = cut(known)
    if config.num_epochs is None and known and isinstance(reader, TagColumns):
        return data
    counts: Counter[str] = Counter()

    def observe(row: Row) -> Observed:
        part = part_of(row)
        counts.update(row[_COUNTS])
        tagged = tuple(tags for tags in part.layers if set(tags) != {OUTSIDE})  # as many as there are in any order
        return Observed(
            types_of(chain.from_iterable(tagged)), (part.words, tagged, part.places), " ".join(part.words)
        )

    data = data.surveyed(observe, ranks, config.on_bad_row)
    data = replace(data, counts=reduce(add, ranks.gather_objects(counts)))
    if not known:
        # Also of those that always lie in a longer one: rows with them are to be read again.
        found = {name.removeprefix(_TYPE) for name in data.counts or () if name.startswith(_TYPE)}
        known = found_names(found, earlier_types, reader.columns[1]) if earlier_types else tuple(sorted(found))
    if not 1 <= len(known) <= _MOST_TYPES:
        raise UserError(
            f"column {reader.columns[1]!r} has {len(known)} types of entities: there have to be 1 to {_MOST_TYPES}"
        )
    of_known = cut(known)
    sample = data.sample
    if nested == "each_label":  # a text was read with the layers of its own types
        sample = tuple({**row, _PART: _with_layers_of(part_of(row), known)} for row in sample)
    sources = {"source": of_known.source, "eval_source": of_known.eval_source}
    return replace(data, reader=of_known.reader, types=known, sample=sample, **sources)


def _with_layers_of(part: Part, types: Sequence[str]) -> Part:
    """A part with a layer for each of the types, in their order, of layers in any order."""
    of_types = {name: tags for tags in part.layers for name in types_of(tags)}
    outside = (OUTSIDE,) * len(part.words)
    return replace(part, layers=tuple(of_types.get(name, outside) for name in types))


def _reader_for(
    dataset: Datasets, config: RecipeConfig, columns: Columns, types: tuple[str, ...]
) -> TagColumns | SpanColumns:
    """How the dataset's rows tell of entities, by the first of them."""
    first = parts_of(dataset)[0]  # the others have the same columns
    source = columns.open(first.location, config.train_split, revision=config.dataset_revision)
    rows = (row for shard in range(source.num_shards) for _, row in source.read(shard, 0))
    good = [row for row in islice(rows, _NUM_LOOKED_AT) if not isinstance(row, BadRow)]
    of_words = TagColumns(columns.words, columns.tags, types=types)
    for row in good:
        if columns.words in row and columns.tags in row:
            return of_words
        entities = columns.entities or next((name for name in SPAN_COLUMNS if name in row), None)
        if columns.text in row and entities is not None and entities in row:
            return SpanColumns(columns.text, entities, types)
    if good and not any(columns.words in row or columns.tags in row for row in good):
        has = shortened(", ".join(map(str, good[0])), 300) or "none"
        raise UserError(
            f"dataset {first.name!r}: its rows have the columns {has}: there have to be one of words and one of tags "
            f"(`words_column` {columns.words}, `tags_column` {columns.tags}), or one of texts and one of entities "
            f"(`text_column` {columns.text}, `entities_column` {columns.entities or ', '.join(SPAN_COLUMNS)})"
        )
    return of_words
