"""A dataset as passages: tokens, of which some are predicted from those before them and the others only read."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import TYPE_CHECKING, Protocol

import numpy as np

from hf_accum.config.datasets import Datasets
from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.source import BadRow, Row, Source, in_parts
from hf_accum.data.split import SplitData, open_split
from hf_accum.data.survey import Observed
from hf_accum.distributed.ranks import Ranks
from hf_accum.errors import UserError
from hf_accum.tasks.special_tokens import frame_of
from hf_accum.tasks.tokenization import text_of, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MOST_PARTS = 65_536  # of one text
_MOST_NAMED = 5
_SAME_TEXT = "text of the row"
# Columns of a row that is a passage, by names that a dataset's own column, by which it is split, will not have.
_PLACE, _TOKENS, _IS_TARGET, _NUM_TRUNCATED = "place of a row", "tokens of it", "which are targets", "tokens cut off"
_IS_TEXT, _REMARKS = "whether it is a plain text", "remarks of it"


@dataclass(frozen=True)
class Passage:
    """Tokens (int32), which of them are predicted (the first one never is), and how many more there were."""

    tokens: np.ndarray
    is_target: np.ndarray
    num_truncated: int = 0
    is_text: bool = False
    """A plain text, or a part of one: nobody answers in it."""
    remarks: tuple[str, ...] = ()
    """What of its row is not learned, or not as the data has it."""


class Reader(Protocol):
    """How a row is made into passages."""

    @property
    def columns(self) -> tuple[str, ...]:
        """What it needs of a row."""
        ...

    @property
    def most_parts(self) -> int:
        """How many passages it may make of a row."""
        ...

    def read(self, row: Row) -> tuple[str, list[Passage]]:
        """The text by which equal rows are known, and the passages.

        Raises:
            BadRow: if the row cannot be used.
        """
        ...

    def prompt(self, row: Row) -> np.ndarray:
        """The tokens that the model is to go on from, (num_tokens,), whatever the row has behind them.

        Raises:
            BadRow: if there are none.
        """
        ...


class WholeTexts:
    """A text as one passage, or as several consecutive ones: no token is lost, and each is predicted once.

    The first token of a text has none before it, unless the tokenizer puts one there; that of a later part has the
    last one of the part before.
    """

    most_parts = _MOST_PARTS

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", text_column: str, max_length: int) -> None:
        self._tokenizer = tokenizer
        self._text_column = text_column
        self._frame = frame_of(tokenizer)
        self._most = max_length - len(self._frame.before)  # without what stands before
        if self._most < 2:
            raise UserError(f"`max_length` {max_length}: has to leave place for text beside the special tokens")

    @property
    def columns(self) -> tuple[str, ...]:
        """That of the text."""
        return (self._text_column,)

    def read(self, row: Row) -> tuple[str, list[Passage]]:
        """Its parts.

        Raises:
            BadRow: if it has no text, or one in which there is nothing to predict.
        """
        text = text_of(row, self._text_column)
        ((tokens, _),) = tokenize(self._tokenizer, [text], max_length=None, special=False)
        before = np.array(self._frame.before, dtype=np.int32)
        whole = np.concatenate([tokens, self._frame.after]).astype(np.int32)
        if not len(tokens) or len(before) + len(whole) < 2:
            raise BadRow(self._text_column, f"{len(tokens)} tokens: there is nothing to predict one from")
        passages = []
        for start in range(0, max(len(whole) - 1, 1), self._most - 1):
            part = np.concatenate([before, whole[start : start + self._most]])
            is_target = np.ones(len(part), dtype=bool)
            is_target[: len(before)] = False
            if start or not len(before):
                is_target[len(before)] = False
            passages.append(Passage(part, is_target, is_text=True))
        return text, passages

    def prompt(self, row: Row) -> np.ndarray:
        """The whole text, to go on with.

        Raises:
            BadRow: if there is none.
        """
        ((tokens, _),) = tokenize(self._tokenizer, [text_of(row, self._text_column)], max_length=None, special=False)
        whole = np.concatenate([np.array(self._frame.before, dtype=np.int32), tokens]).astype(np.int32)
        if not len(whole):
            raise BadRow(self._text_column, "no token: there is nothing to go on from")
        return whole


@dataclass(frozen=True)
class Truncated:
    """Passages that were cut to length: how many, by how many tokens in all, and where the first ones are."""

    num_passages: int = 0
    num_tokens: int = 0
    places: tuple[str, ...] = ()

    def __add__(self, other: "Truncated") -> "Truncated":
        """These and others."""
        return Truncated(
            self.num_passages + other.num_passages,
            self.num_tokens + other.num_tokens,
            (*self.places, *other.places)[:_MOST_NAMED],
        )


@dataclass(frozen=True, kw_only=True)
class PassageData(SplitData):
    """The dataset, and what of it was cut off, as far as it was read."""

    max_length: int
    truncated: Truncated = Truncated()
    remarks: Mapping[str, int] = field(default_factory=dict)
    """What is not as the data has it, of how many passages."""

    @property
    def notes(self) -> list[str]:
        """Which passages were cut to length, and which are not as the data has them."""
        remarks = [f"{number:,} examples: {remark}" for remark, number in sorted(self.remarks.items())]
        cut = self.truncated
        if not cut.num_passages:
            return [*super().notes, *remarks]
        places = ", ".join(cut.places) + (", ..." if cut.num_passages > len(cut.places) else "")
        number = f"{cut.num_passages:,} examples are longer than `max_length` {self.max_length} and are cut"
        return [*super().notes, f"{number}: {cut.num_tokens:,} tokens are lost (of {places})", *remarks]


def open_passages(
    dataset: Datasets, ranks: Ranks, config: RecipeConfig, reader: Reader, *, group_column: str | None
) -> PassageData:
    """Open the dataset and, where its size is needed, read it once.

    Without a `group_column` rows with the same text (prompt) are on one side of the split.

    Raises:
        UserError: for a dataset, column or row that cannot be used.
    """
    opened = open_split(dataset, reader.columns, config, group_column=group_column or reader.columns[0])

    def parts_of(row: Row) -> Sequence[Row]:
        key, passages = reader.read(row)
        group = {group_column: row.get(group_column)} if group_column else {_SAME_TEXT: key}
        return [
            group
            | {_TOKENS: p.tokens.tobytes(), _IS_TARGET: p.is_target.tobytes()}
            | {_NUM_TRUNCATED: p.num_truncated, _IS_TEXT: p.is_text, _REMARKS: p.remarks}
            for p in passages
        ]

    def of_passages(source: Source) -> Source:
        return _with_places(in_parts(source, parts_of, reader.most_parts), reader.most_parts)

    passages = opened.with_rows(of_passages, group_column or _SAME_TEXT)
    data = PassageData(max_length=config.max_length, **vars(passages))
    if config.num_epochs is None:
        return data
    found, remarks = Counter[str](), Counter[str]()
    places: list[str] = []

    def observe(row: Row) -> Observed:
        if number := row[_NUM_TRUNCATED]:
            found.update(passages=1, tokens=number)
            if len(places) < _MOST_NAMED:
                places.append(f"{row[_PLACE]} ({number:,})")
        remarks.update(row[_REMARKS])
        return Observed((), (row[_TOKENS], row[_IS_TARGET]), row[_TOKENS])

    data = data.surveyed(observe, ranks, config.on_bad_row)
    mine = Truncated(found["passages"], found["tokens"], tuple(places))
    of_ranks = ranks.gather_objects((mine, remarks))
    truncated = reduce(Truncated.__add__, [cut for cut, _ in of_ranks])
    return replace(data, truncated=truncated, remarks=sum((counts for _, counts in of_ranks), Counter[str]()))


def passage_of(row: Row) -> Passage:
    """The passage of a row of the opened dataset."""
    tokens, is_target = np.frombuffer(row[_TOKENS], dtype=np.int32), np.frombuffer(row[_IS_TARGET], dtype=bool)
    return Passage(tokens, is_target, row[_NUM_TRUNCATED], row[_IS_TEXT])


def _with_places(parts: Source, most_parts: int) -> Source:
    """Passages that know in which row of the dataset they stand; at most so many are of one."""

    def read(shard: int, start: int) -> Iterator[tuple[int, Row | BadRow]]:
        for number, part in parts.read(shard, start):
            place = {_PLACE: f"{parts.names[shard]} row {number // most_parts + 1}"}
            yield number, part if isinstance(part, BadRow) else {**part, **place}

    return replace(parts, read=read)
