"""Figures of entities that need not be exact: found is what shares a character with one of the same label."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

Spans = Iterable[tuple[int, int, str]]
"""Start, end (the first character behind it) and label of each entity of a text."""


def overlap_figures(
    predicted: Sequence[Spans], truth: Sequence[Spans]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Micro-averaged figures over texts (`overlap_precision`, ...), and by label (`precision`, ..., and the numbers).

    - precision: the share of predicted entities that share a character with a true one of their label.
    - recall: the share of true ones that do so with a predicted one.
    - f1: their harmonic mean.

    One may be matched by several, and counts once on its own side. Where a side has none its share is 0.
    """
    counts = {name: Counter[str]() for name in ("predicted", "true", "right", "found")}
    for sides in zip(predicted, truth, strict=True):
        for name, of_text in overlap_counts(*sides).items():
            counts[name].update(of_text)
    overall = _figures({name: counter.total() for name, counter in counts.items()})
    by_label = {
        label: _figures({name: counter[label] for name, counter in counts.items()})
        | {f"num_{side}": float(counts[side][label]) for side in ("true", "predicted")}
        for label in sorted({*counts["predicted"], *counts["true"]})
    }
    return {f"overlap_{name}": value for name, value in overall.items()}, by_label


def overlap_counts(predicted: Spans, truth: Spans) -> dict[str, Counter[str]]:
    """Of a text, by label: how many are `predicted` and `true`; how many of the former are `right`, of the latter
    `found`.
    """
    counts = {name: Counter[str]() for name in ("predicted", "true", "right", "found")}
    mine, theirs = _by_label(predicted), _by_label(truth)
    for ones, others, number, matched in ((mine, theirs, "predicted", "right"), (theirs, mine, "true", "found")):
        for label, spans in ones.items():
            counts[number][label] += len(spans)
            counts[matched][label] += sum(_is_matched(*span, others.get(label, ())) for span in spans)
    return counts


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
    return {"precision": precision, "recall": recall, "f1": f1}
