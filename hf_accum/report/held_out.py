"""Held-out examples of a run, from its files: which class was taken for which, and the worst ones."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from hf_accum.report.run_files import RunFiles, read_lines

PREDICTIONS, ERRORS = "predictions.jsonl", "errors.jsonl"
NUM_WORST = 20
_MOST_CLASSES = 30
_LONGEST_TEXT = 4000  # characters
_NO_TEXTS = ("id", "label", "prediction", "probabilities", "loss")
"""What an example has that is none of its text."""


@dataclass(frozen=True)
class Confusion:
    """How many examples of a class (rows) were taken for which (columns): `counts` is (num_classes, num_classes)."""

    names: tuple[str, ...]
    counts: np.ndarray

    def shortened(self, most: int = _MOST_CLASSES) -> "Confusion":
        """With the most frequent classes, in the same order, and the others together as the last one."""
        if len(self.names) <= most:
            return self
        frequency = self.counts.sum(axis=0) + self.counts.sum(axis=1)
        kept = sorted(np.argsort(-frequency, kind="stable")[: most - 1].tolist())
        place = np.full(len(self.names), most - 1)
        place[kept] = np.arange(most - 1)
        counts = np.zeros((most, most), dtype=np.int64)
        np.add.at(counts, (place[:, None], place[None, :]), self.counts)
        others = f"{len(self.names) - most + 1:,} others"
        return Confusion((*(self.names[index] for index in kept), others), counts)


@dataclass(frozen=True)
class LabelCounts:
    """Of several labels for each example: how often each was given rightly, missed, and given wrongly."""

    names: tuple[str, ...]
    right: np.ndarray
    missed: np.ndarray
    wrong: np.ndarray


def counted(run: RunFiles) -> Confusion | LabelCounts | None:
    """What `predictions.jsonl` says of the classes of `evaluation.json`; None: nothing.

    The labels of rows that are no classes (numbers, texts, entities) are not counted.
    """
    names: dict[str, int] = {name: index for index, name in enumerate(_mapping(run.evaluation.get("per_class")))}
    if not names:
        return None
    pairs: Counter[tuple[int, int]] = Counter()
    right, missed, wrong = (np.zeros(len(names), dtype=np.int64) for _ in range(3))
    num_of_several = num_others = 0
    for row in read_lines(run.folder / PREDICTIONS, run.problems):
        if "label" not in row and "prediction" not in row:
            continue  # of a task whose examples have none, as entities
        label: Any = row.get("label")
        prediction: Any = row.get("prediction")
        if isinstance(label, str) and isinstance(prediction, str) and label in names and prediction in names:
            pairs[names[label], names[prediction]] += 1
        elif _are_of(label, names) and _are_of(prediction, names):
            num_of_several += 1
            for name in {*label, *prediction}:
                counts = right if name in label and name in prediction else missed if name in label else wrong
                counts[names[name]] += 1
        else:
            num_others += 1
    if num_others:
        run.problems.append(
            f"{PREDICTIONS}: {num_others:,} rows have no class of evaluation.json, and are not counted"
        )
    if num_of_several:
        return LabelCounts(tuple(names), right, missed, wrong)
    if not pairs:
        return None
    matrix = np.zeros((len(names), len(names)), dtype=np.int64)
    for place, number in pairs.items():
        matrix[place] = number
    return Confusion(tuple(names), matrix)


@dataclass(frozen=True)
class Worst:
    """A held-out example of a great loss, to be read."""

    id: str
    loss: float | None
    label: str | None
    prediction: str | None
    """None of what has no labels, as a text that is gone on with."""
    shown: dict[str, str]
    """Its text, or whatever shows it, by the name of the field."""


def worst_of(run: RunFiles, *, texts: bool) -> list[Worst]:
    """The first of `errors.jsonl`, which has the greatest loss first; without `texts` no field that shows it."""
    rows = islice(read_lines(run.folder / ERRORS, run.problems), NUM_WORST)
    found = [_worst(row) for row in rows]
    return found if texts else [replace(one, shown={}) for one in found]


@dataclass(frozen=True)
class Sample:
    """What a language model wrote: the fields of a line of `samples.jsonl`, by their names."""

    title: str
    shown: dict[str, str]


def samples_of(run: RunFiles) -> list[Sample]:
    """All that the run kept, those from before the training beside those after it."""
    rows = sorted(read_lines(run.folder / "samples.jsonl", run.problems), key=lambda row: str(row.get("number")))
    return [
        Sample(
            f"sample {row.get('number', '?')}, {row.get('when', '?')} the training",
            {name: _cut(row[name]) for name in ("prompt", "generated", "reference") if name in row},
        )
        for row in rows
    ]


def _worst(row: Mapping[str, Any]) -> Worst:
    loss, probabilities = row.get("loss"), _mapping(row.get("probabilities"))
    return Worst(
        id=str(row.get("id", "")),
        loss=float(loss) if isinstance(loss, int | float) else None,
        label=_labels(row["label"], probabilities) if "label" in row else None,
        prediction=_labels(row["prediction"], probabilities) if "prediction" in row else None,
        shown={name: _cut(value) for name, value in row.items() if name not in _NO_TEXTS},
    )


def _labels(value: Any, probabilities: Mapping[str, Any]) -> str:
    """Labels with their probabilities. Anything but names and numbers may be a text, and is left out."""
    if isinstance(value, int | float):
        return f"{value:.4g}"
    names = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    if not all(isinstance(name, str) and name in probabilities for name in names):
        return "(not shown)"
    return ", ".join(f"{name} ({_share(probabilities[name])})" for name in names) or "none"


def _share(probability: Any) -> str:
    return f"{probability:.3f}" if isinstance(probability, int | float) else "?"


def _cut(value: Any) -> str:
    text = value if isinstance(value, str) else _entities(value) if isinstance(value, list) else str(value)
    more = len(text) - _LONGEST_TEXT
    return text if more <= 0 else f"{text[:_LONGEST_TEXT]} ... ({more:,} more characters are in the file)"


def _entities(values: list[Any]) -> str:
    """Each with its label; other lists as they are."""
    if not all(isinstance(value, dict) and {"text", "label"} <= value.keys() for value in values):
        return str(values)
    return ", ".join(f"{value['text']} ({value['label']})" for value in values) or "none"


def _are_of(labels: Any, names: Mapping[str, int]) -> bool:
    return isinstance(labels, list) and all(isinstance(name, str) and name in names for name in labels)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def classes_of(run: RunFiles) -> Sequence[tuple[str, Mapping[str, Any]]]:
    """The rows of the table by class."""
    return [(name, row) for name, row in _mapping(run.evaluation.get("per_class")).items() if isinstance(row, dict)]
