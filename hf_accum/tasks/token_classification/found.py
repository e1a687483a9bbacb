"""What a model found in whole texts: their tags as entities by characters, and the figures of these."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hf_accum.evaluation.evaluate import Metric
from hf_accum.evaluation.span_overlap import overlap_figures
from hf_accum.tasks.token_classification.tags import Tags, entities_of

Places = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class FoundPart:
    """Of a part of a text: the places of the words that count, and their predicted and their true tags, by layer.

    `text` are the text's characters from `start` on, up to the next part's.
    """

    example_id: str
    start: int
    text: str
    places: Places
    predicted: tuple[Tags, ...]
    truth: tuple[Tags, ...]


@dataclass(frozen=True)
class FoundText:
    """The same of a whole text; `row_id` is shard and row."""

    row_id: str
    text: str
    places: Places
    predicted: tuple[Tags, ...]
    truth: tuple[Tags, ...]

    @property
    def predicted_entities(self) -> list[dict[str, Any]]:
        """What the model found, as `entities_in` has it."""
        return entities_in(self.text, self.places, self.predicted)

    @property
    def true_entities(self) -> list[dict[str, Any]]:
        """What there is, as `entities_in` has it."""
        return entities_in(self.text, self.places, self.truth)


def entities_in(text: str, places: Places, layers: Iterable[Tags]) -> list[dict[str, Any]]:
    """The entities that tags tell, by characters of the text: `start`, `end`, `label`, `text`; by their places.

    The tags are in any layers, of words at these places.
    """
    found = [
        (places[entity.first][0], places[entity.last - 1][1], entity.type)
        for tags in layers
        for entity in entities_of(tags)
    ]
    return [
        {"start": start, "end": end, "label": label, "text": text[start:end]} for start, end, label in sorted(found)
    ]


def whole_texts(parts: Iterable[FoundPart], parts_per_row: int) -> list[FoundText]:
    """The texts of parts in any order, in the order of the data."""
    of_rows: dict[tuple[int, int], list[tuple[int, FoundPart]]] = defaultdict(list)
    for part in parts:
        shard, number = map(int, part.example_id.split(":"))
        of_rows[shard, number // parts_per_row].append((number, part))
    texts = []
    for (shard, row), numbered in sorted(of_rows.items(), key=lambda item: item[0]):
        of_text = [part for _, part in sorted(numbered, key=lambda item: item[0])]
        texts.append(
            FoundText(
                f"{shard}:{row}",
                "".join(part.text for part in of_text),
                [place for part in of_text for place in part.places],
                joined([part.predicted for part in of_text]),
                joined([part.truth for part in of_text]),
            )
        )
    return texts


def joined(parts: Sequence[tuple[Tags, ...]]) -> tuple[Tags, ...]:
    """The tags of a text's parts, by layer, as those of the text."""
    return tuple(tuple(tag for tags in of_layer for tag in tags) for of_layer in zip(*parts, strict=True))


def figures_of(texts: Sequence[FoundText]) -> dict[str, Any]:
    """The figures of whole entities (strict), and of those that share a character; by type the same."""
    predictions = [list(tags) for text in texts for tags in text.predicted]
    references = [list(tags) for text in texts for tags in text.truth]
    figures = _METRIC.compute(predictions, references)
    spans = [
        [[(one["start"], one["end"], one["label"]) for one in entities] for entities in side]
        for side in ([text.predicted_entities for text in texts], [text.true_entities for text in texts])
    ]
    overlap, by_type = overlap_figures(*spans)
    return figures | overlap | {"per_class_overlap": by_type}


_METRIC = Metric("entities", {})
"""Entity-level precision, recall and F1, overall and by type, of tagged words."""
