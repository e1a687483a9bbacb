"""Entities by characters of a text, as annotation tools write them, and the words that they are."""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_accum.data.formats.rows import BadRow
from hf_accum.errors import shown
from hf_accum.tasks.token_classification.tags import Entity

SPAN_COLUMNS = ("entities", "spans", "label", "labels", "annotations")
"""Where tools write the entities of a text: the first that a row has."""
_STARTS, _ENDS = ("start", "start_offset", "begin"), ("end", "end_offset", "stop")
_LABELS, _TEXTS = ("label", "type", "labels", "entity", "tag", "entity_group"), ("text",)
TRIMMED, DISCONTINUOUS = "trimmed", "discontinuous"


@dataclass(frozen=True)
class Span:
    """Characters of a text from `start` up to `end`, and what they name.

    `text` is what the annotation says stands there; None: it does not say. `where` it is said, for messages.
    """

    start: int
    end: int
    label: str
    text: str | None
    where: str
    is_discontinuous: bool = False
    """It has gaps, of which `text` says nothing: `start` and `end` are its outer ends."""


def spans_of(values: Any, column: str) -> list[Span]:
    """The entities of a row: objects with `start`, `end`, `label` and perhaps `text` (and other tools' names for
    them), lists `[start, end, label]`, or an object of lists, as a table has it.

    Raises:
        BadRow: for what is none of these.
    """
    if isinstance(values, Mapping) and values and all(isinstance(items, list | tuple) for items in values.values()):
        if len({len(items) for items in values.values()}) > 1:
            raise BadRow(
                column, f"{shown(values)} has lists of different lengths: they are to tell of the same entities"
            )
        values = [dict(zip(values, items, strict=True)) for items in zip(*values.values(), strict=True)]
    if not isinstance(values, list | tuple):
        raise BadRow(column, f"{shown(values)} is no list of entities")
    return [
        value if isinstance(value, Span) else _span(value, column, f"entity {number}")
        for number, value in enumerate(values, 1)
    ]


def _span(value: Any, column: str, where: str) -> Span:
    if isinstance(value, list | tuple) and len(value) == 3:
        start, end, label, text = *value, None
    elif isinstance(value, Mapping):
        start, end, label, text = (_first_of(value, names) for names in (_STARTS, _ENDS, _LABELS, _TEXTS))
        if isinstance(label, list | tuple) and len(label) == 1:
            (label,) = label
    else:
        raise BadRow(
            column,
            f"{where}: {shown(value)} is no entity: it has to have `start`, `end` and `label`, or be a list of them",
        )
    for name, place in (("start", start), ("end", end)):
        if isinstance(place, bool) or not (
            isinstance(place, int) or (isinstance(place, float) and place.is_integer())
        ):
            raise BadRow(column, f"{where}: its {name} {shown(place)} is no whole number")
    if not isinstance(label, str) or not label.strip():
        raise BadRow(column, f"{where}: its label {shown(label)} is no name")
    if text is not None and not isinstance(text, str):
        raise BadRow(column, f"{where}: its text {shown(text)} is of type {type(text).__name__}, not a text")
    return Span(int(start), int(end), label, text, where)


def _first_of(value: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((value[name] for name in names if value.get(name) is not None), None)


def entities_among(
    spans: Sequence[Span], text: str, places: Sequence[tuple[int, int]], column: str
) -> tuple[list[Entity], Counter[str]]:
    """The words that spans are, of a text whose words stand at these places; how many are `TRIMMED` (they begin or
    end in what is no word), and how many `DISCONTINUOUS`.

    Raises:
        BadRow: for a span that is outside of the text, says another text than stands there, cuts a word, or has no
            word in it.
    """
    starts, ends = [start for start, _ in places], [end for _, end in places]
    entities: list[Entity] = []
    counts: Counter[str] = Counter()
    for span in spans:
        if not 0 <= span.start < span.end <= len(text):
            raise BadRow(
                column,
                f"{span.where}: characters {span.start:,} to {span.end:,} are no part of the text, which has "
                f"{len(text):,}",
            )
        if not _says_what_is_there(span, text):
            raise BadRow(
                column,
                f"{span.where}: says {shown(span.text)}, and characters {span.start:,} to {span.end:,} are "
                f"{shown(text[span.start : span.end])}",
            )
        first, last = bisect_right(ends, span.start), bisect_left(starts, span.end)
        if first >= last:
            raise BadRow(column, f"{span.where}: {shown(text[span.start : span.end])} has no word in it")
        for word, is_cut in ((first, starts[first] < span.start), (last - 1, ends[last - 1] > span.end)):
            if is_cut:
                raise BadRow(
                    column,
                    f"{span.where}: {shown(text[span.start : span.end])} cuts the word "
                    f"{shown(text[starts[word] : ends[word]])} (characters {starts[word]:,} to {ends[word]:,})",
                )
        counts[TRIMMED] += (starts[first], ends[last - 1]) != (span.start, span.end)
        counts[DISCONTINUOUS] += span.is_discontinuous
        entities.append(Entity(first, last, span.label))
    return entities, counts


def _says_what_is_there(span: Span, text: str) -> bool:
    """Tools write spaces for line ends."""
    return span.text is None or span.text.split() == text[span.start : span.end].split()
