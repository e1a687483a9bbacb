"""Figures of entities that need not be exact: found is what shares a character with one of the same label."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

Spans = Iterable[tuple[int, int, str]]
"""Start, end (the first character behind it) and label of each entity of a text."""


def overlap_figures(
    predicted: Sequence[Spans], truth: Sequence[Spans]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Micro-averaged figures over texts, and the same by label.

    - `overlap_precision`: the share of predicted entities that share a character with a true one of their label.
    - `overlap_recall`: the share of true ones that do so with a predicted one.
    - `overlap_f1`: their harmonic mean.
    - `num_predicted`: how many were predicted (by label only).

    As in the "partial" matches of MUC-5 and SemEval-2013 task 9.1 an entity may be matched by several; each counts
    once on its own side. Without any entity on a side its share is 0.
    """
    counts = {name: Counter[str]() for name in ("predicted", "true", "right", "found")}
    for of_text, truth_of_text in zip(predicted, truth, strict=True):
        mine, theirs = _by_label(of_text), _by_label(truth_of_text)
        for ones, others, number, matched in ((mine, theirs, "predicted", "right"), (theirs, mine, "true", "found")):
            for label, spans in ones.items():
                counts[number][label] += len(spans)
                counts[matched][label] += sum(_is_matched(*span, others.get(label, ())) for span in spans)
    by_label = {
        label: _figures({name: counter[label] for name, counter in counts.items()})
        | {"num_predicted": counts["predicted"][label]}
        for label in {*counts["predicted"], *counts["true"]}
    }
    return _figures({name: counter.total() for name, counter in counts.items()}), by_label


def _by_label(spans: Spans) -> dict[str, list[tuple[int, int]]]:
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for start, end, label in spans:
        found[label].append((start, end))
    return found


def _is_matched(start: int, end: int, others: Sequence[tuple[int, int]]) -> bool:
    return any(start < other_end and other_start < end for other_start, other_end in others)


def _figures(counts: dict[str, int]) -> dict[str, float]:
    precision = counts["right"] / max(counts["predicted"], 1)
    recall = counts["found"] / max(counts["true"], 1)
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {"overlap_precision": precision, "overlap_recall": recall, "overlap_f1": f1}
