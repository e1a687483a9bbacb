"""What a model found in whole texts: their tags as entities by characters, and the figures of these."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_accum.evaluation.bootstrap import Weighted, with_intervals
from hf_accum.evaluation.evaluate import Metric
from hf_accum.evaluation.judge import Each, judged_of
from hf_accum.evaluation.records import write_records
from hf_accum.evaluation.span_overlap import overlap_counts, overlap_figures
from hf_accum.evaluation.weighted import mean, nanmean
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
    loss: float = 0.0
    """Summed over the words that count, which weigh `weight`."""
    weight: float = 0.0
    group: int = 0
    """As `group_of` has it."""


@dataclass(frozen=True)
class FoundText:
    """The same of a whole text; `row_id` is shard and row."""

    row_id: str
    text: str
    places: Places
    predicted: tuple[Tags, ...]
    truth: tuple[Tags, ...]
    loss: float = 0.0
    weight: float = 0.0
    group: int = 0

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
                sum(part.loss for part in of_text),
                sum(part.weight for part in of_text),
                of_text[0].group,
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
    overlap, by_type = overlap_figures(*zip(*map(_spans_of, texts), strict=True))
    return figures | overlap | {"per_class_overlap": by_type}


def with_each_text(
    figures: Mapping[str, Any], texts: Sequence[FoundText], folder: Path, place_of: Callable[[str], str]
) -> dict[str, Any]:
    """The figures, with 95 % intervals of those of all types together; each text goes to files in the folder."""
    counts = [_counts_of(text) for text in texts]
    types = sorted({name for of_text in counts for side in ("true", "predicted") for name in of_text[side]})
    columns = [np.array([[of_text[name][t] for t in types] for of_text in counts], float) for name in _COUNTS]
    judged = judged_of(
        Each(
            text.row_id,
            text.group,
            text.weight,
            text.loss / text.weight if text.weight else 0.0,
            np.array([sum(map(_num_equal, text.predicted, text.truth)), sum(map(len, text.truth))]),
            {"text": text.text},
        )
        for text in texts
    )

    def weighted(weights: np.ndarray) -> dict[str, np.ndarray]:
        true, predicted, exact, right, found = (weights @ column for column in columns)
        with np.errstate(invalid="ignore", divide="ignore"):
            macro = nanmean((2 * exact / (true + predicted)).T)
        all_types = [values.sum(axis=1) for values in (true, predicted, exact, right, found)]
        true, predicted, exact, right, found = all_types
        return {
            "loss": mean(weights, judged.losses * judged.weights, judged.weights),
            **_shares("", exact, exact, true, predicted),
            "macro_f1": np.nan_to_num(macro),
            "word_accuracy": mean(weights, judged.outputs[:, 0], judged.outputs[:, 1]),
            **_shares("overlap_", right, found, true, predicted),
        }

    by_id = {text.row_id: text for text in texts}

    def record(index: int) -> dict[str, Any]:
        text = by_id[judged.ids[index]]
        return {"entities": text.true_entities, "predicted": text.predicted_entities}

    notes = write_records(folder, judged, place_of, record)
    return with_intervals({**figures, "notes": notes}, judged.groups, [Weighted(weighted, width=len(types) or 1)])


_COUNTS = ("true", "predicted", "exact", "right", "found")


def _counts_of(text: FoundText) -> dict[str, Counter[str]]:
    """By type: entities that are there and predicted, that are both to the character, and those that overlap."""
    predicted, truth = _spans_of(text)
    exact = Counter(label for _, _, label in set(predicted) & set(truth))
    return {**overlap_counts(predicted, truth), "exact": exact}


def _spans_of(text: FoundText) -> tuple[list[tuple[int, int, str]], list[tuple[int, int, str]]]:
    """What is predicted, and what there is."""
    predicted, truth = (
        [(one["start"], one["end"], one["label"]) for one in entities]
        for entities in (text.predicted_entities, text.true_entities)
    )
    return predicted, truth


def _num_equal(tags: Tags, others: Tags) -> int:
    return sum(one == other for one, other in zip(tags, others, strict=True))


def _shares(
    prefix: str, right: np.ndarray, found: np.ndarray, true: np.ndarray, predicted: np.ndarray
) -> dict[str, np.ndarray]:
    """Precision, recall and F1; 0 where there is nothing to have a share of, as in the figures."""
    precision, recall = right / np.maximum(predicted, 1), found / np.maximum(true, 1)
    both = precision + recall
    f1 = np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)
    return {f"{prefix}precision": precision, f"{prefix}recall": recall, f"{prefix}f1": f1}


_METRIC = Metric("entities", {})
"""Entity-level precision, recall and F1, overall and by type, of tagged words."""
