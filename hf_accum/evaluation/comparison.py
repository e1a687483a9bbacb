"""Two models on the same examples: how much their figures differ, by a bootstrap in which both get the same draws.

Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13: percentile intervals, of the difference.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from hf_accum.errors import UserError, shortened
from hf_accum.evaluation.bootstrap import Bootstrapped, Interval, Weighted, intervals
from hf_accum.evaluation.classification import weighted_figures
from hf_accum.evaluation.decisions import Decisions
from hf_accum.evaluation.evaluate import LOWER_IS_BETTER
from hf_accum.evaluation.judge import Judged


@dataclass(frozen=True)
class Side:
    """One model on all examples: the number of each one's group, and what a bootstrap computes again.

    Of a classification or regression also its examples, judged, and how its logits are read; None: they are numbers.
    """

    groups: np.ndarray
    parts: Sequence[Weighted]
    counts: Mapping[str, int] = field(default_factory=dict)
    """Of examples, of tokens, ...: what the figures are means over."""
    supports: Mapping[str, float] = field(default_factory=dict)
    """How many entities, or pixels, there are of each label that there is."""
    judged: Judged | None = None
    decisions: Decisions | None = None

    @classmethod
    def of_each(cls, judged: Judged, decisions: Decisions | None) -> "Side":
        """That of a classification or regression."""
        return cls(judged.groups, weighted_figures(judged, decisions), judged=judged, decisions=decisions)

    @classmethod
    def of_figures(cls, figures: Mapping[str, Any]) -> "Side":
        """That of any task that gives intervals.

        Raises:
            UserError: if it does not.
        """
        if not isinstance(figures, Bootstrapped):
            raise UserError("this task has no intervals: its runs cannot be compared")
        counts = {name: value for name, value in figures.items() if name.startswith("num_")}
        supports = {name: of_label["support"] for name, of_label in figures.get("per_class", {}).items()}
        return cls(figures.groups, figures.parts, counts, {name: n for name, n in supports.items() if n})


@dataclass(frozen=True)
class Difference:
    """A figure of both models, and the 95 % interval of the second less the first; None where there is none."""

    first: float
    second: float
    interval: Interval


@dataclass(frozen=True)
class Rule:
    """What the second model has to be: not worse by more than a margin, or better, for certain at 95 %."""

    kind: Literal["not_worse", "better"]
    figure: str
    margin: float = 0.0

    @classmethod
    def of(cls, text: str) -> "Rule":
        """That of `not_worse:macro_f1:0.01` or `better:accuracy`.

        Raises:
            UserError: if it is neither.
        """
        kind, _, rest = text.partition(":")
        figure, _, margin = rest.partition(":")
        try:
            if kind == "better" and figure and not margin:
                return cls("better", figure)
            if kind == "not_worse" and figure and 0 <= float(margin) < math.inf:
                return cls("not_worse", figure, float(margin))
        except ValueError:
            pass
        raise UserError(
            f"`require` {text}: has to be not_worse:FIGURE:MARGIN, as not_worse:macro_f1:0.01, or better:FIGURE"
        )

    def check(self, figures: Collection[str]) -> None:
        """Look whether its figure is one of these.

        Raises:
            UserError: if it is not.
        """
        if self.figure not in figures:
            raise UserError(f"`require` {self.figure}: has to be one of {', '.join(figures)}")

    def is_kept(self, differences: Mapping[str, Difference]) -> bool:
        """Whether the whole interval of the difference is on the right side.

        Raises:
            UserError: as `gain_at_least` does.
        """
        gain = self.gain_at_least(differences)
        return gain > 0 if self.kind == "better" else gain >= -self.margin

    def gain_at_least(self, differences: Mapping[str, Difference]) -> float:
        """By how much the second is better at the bad end of the interval; below 0 it may be worse.

        Raises:
            UserError: if there is no such figure, or it has no interval here.
        """
        self.check(differences)
        interval = differences[self.figure].interval
        if interval is None:
            raise UserError(
                f"`require` {self.figure}: has no interval on these rows, which are one group or have too few labels"
            )
        return -interval[1] if self.figure in LOWER_IS_BETTER else interval[0]


def compared(first: Side, second: Side) -> dict[str, Difference]:
    """Both models' figures, by name, with the intervals of their differences.

    Raises:
        UserError: if they were judged on different rows, or their labels are not the same.
    """
    _check_alike(first, second)
    found: dict[str, Difference] = {}
    groups = first.groups
    for one, other in zip(first.parts, second.parts, strict=False):
        once = np.ones((1, len(groups)))
        points = [{name: float(v[0]) for name, v in part.figures(once).items()} for part in (one, other)]
        ranges = _ranges(groups, one, other) if groups.any() else {}
        found |= {
            name: Difference(point, points[1][name], ranges.get(name))
            for name, point in points[0].items()
            if name in points[1]
        }
    return found


def _ranges(groups: np.ndarray, one: Weighted, other: Weighted) -> dict[str, Interval]:
    def difference(weights: np.ndarray) -> dict[str, np.ndarray]:
        of_one, of_other = one.figures(weights), other.figures(weights)
        return {name: of_other[name] - values for name, values in of_one.items() if name in of_other}

    return intervals(groups, difference, min(one.num_resamples, other.num_resamples), width=2 * one.width)


def _check_alike(first: Side, second: Side) -> None:
    """Look whether they were judged on the same rows, with the same labels in any order."""
    if first.counts != second.counts or not np.array_equal(first.groups, second.groups):
        differing = {name: (n, second.counts.get(name)) for name, n in first.counts.items()}
        told = ", ".join(f"{name} {n:,} and {m:,}" for name, (n, m) in differing.items() if m is not None and n != m)
        raise UserError(
            "the two runs were judged on different rows, or their tokenizers cut these into different tokens"
            f"{f' ({told})' if told else ''}: have both read all of them (`dataset`), alike"
        )
    if first.supports != second.supports:
        raise UserError(_OTHER_LABELS)
    if first.judged is None or second.judged is None:
        return
    if first.judged.ids != second.judged.ids:
        raise UserError("the two runs were judged on different rows: have both read all of them (`dataset`)")
    if (first.decisions is None) != (second.decisions is None):
        raise UserError("the two runs have different problems: one has labels and the other numbers")
    if first.decisions is None or second.decisions is None:
        return
    names, others = first.decisions.names, second.decisions.names
    if set(names) != set(others) or first.decisions.several != second.decisions.several:
        known = "; ".join(shortened(", ".join(of_one), 200) for of_one in (names, others))
        raise UserError(f"the two runs have different labels: {known}")
    truths = (_truth(first.judged, first.decisions), _truth(second.judged, second.decisions))
    if not np.array_equal(*truths):
        raise UserError(_OTHER_LABELS)


_OTHER_LABELS = "the two runs read different labels of the same rows: give the columns, or compare their flags"


def _truth(judged: Judged, decisions: Decisions) -> np.ndarray:
    """The labels of each example, whatever the order of the names."""
    if decisions.several:
        return judged.references[:, np.argsort(decisions.names)]
    return np.array(decisions.names)[judged.references.astype(int)]
