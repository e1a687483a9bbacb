"""From the logits of a classification to probabilities and decisions, by what was fitted for that."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import expit, softmax

from hf_accum.evaluation.calibration import fit_temperature
from hf_accum.evaluation.judge import Judged
from hf_accum.evaluation.thresholds import DEFAULT, best_thresholds

_DIGITS = 6


@dataclass(frozen=True)
class Fitted:
    """What was fitted on examples that were neither trained on nor held out; None: not asked for."""

    temperature: float | None
    thresholds: tuple[float, ...] | None
    num_examples: int
    num_positives: tuple[int, ...]
    """Of each label."""


@dataclass(frozen=True)
class Decisions:
    """How logits, (num_examples, num_labels), are read: one label for each example, or any number (`several`)."""

    names: tuple[str, ...]
    several: bool
    fitted: Fitted | None = None

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The probability of each label from which on it counts as predicted, where there are several."""
        fitted = None if self.fitted is None else self.fitted.thresholds
        return (DEFAULT,) * len(self.names) if fitted is None else fitted

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Of each label, in float64."""
        scaled = logits.astype(np.float64)
        if self.fitted is not None and self.fitted.temperature is not None:
            scaled /= self.fitted.temperature
        return expit(scaled) if self.several else softmax(scaled, axis=1)

    def chosen(self, logits: np.ndarray) -> np.ndarray:
        """Class indices, (num_examples,), or which labels are predicted, (num_examples, num_labels)."""
        if self.several:
            return self.probabilities(logits) >= np.array(self.thresholds)
        return logits.argmax(axis=1)  # of which no temperature is another one

    def named(self, decision: Any) -> str | list[str]:
        """The class of an index, or the labels that are there, by name."""
        if self.several:
            return [name for name, is_there in zip(self.names, decision, strict=True) if is_there]
        return self.names[int(decision)]

    def told(self, logits: np.ndarray) -> "Callable[[int], dict[str, Any]]":
        """Of a row of logits, by its place: the `prediction` by name, and the `probabilities`, to six decimals."""
        probabilities, chosen = np.round(self.probabilities(logits), _DIGITS), self.chosen(logits)

        def of(index: int) -> dict[str, Any]:
            by_name = dict(zip(self.names, probabilities[index].tolist(), strict=True))
            return {"prediction": self.named(chosen[index]), "probabilities": by_name}

        return of

    def confidences(self, judged: Judged) -> tuple[np.ndarray, np.ndarray]:
        """The probability of each decision (of an example, or of each of its labels), and whether it is right."""
        probabilities, chosen = self.probabilities(judged.outputs), self.chosen(judged.outputs)
        if self.several:
            of_decision = np.where(chosen, probabilities, 1.0 - probabilities)
            return of_decision.ravel(), (chosen == (judged.references > 0.5)).ravel()
        return probabilities[np.arange(len(chosen)), chosen], chosen == judged.references

    def fit(self, judged: Judged, *, temperature: bool, thresholds: bool) -> "Decisions":
        """These, with what is asked for fitted on examples that nothing else is learned from or measured on."""
        truth = judged.references > 0.5 if self.several else judged.references
        is_label = truth if self.several else truth[:, None] == np.arange(len(self.names))
        fitted = Fitted(
            fit_temperature(judged.outputs, truth) if temperature else None,
            None,
            len(truth),
            tuple(is_label.sum(axis=0).tolist()),
        )
        scaled = replace(self, fitted=fitted)
        if not thresholds:
            return scaled
        best = best_thresholds(scaled.probabilities(judged.outputs), truth)
        return replace(self, fitted=replace(fitted, thresholds=best))

    def as_json(self) -> dict[str, Any]:
        """What was fitted, by the labels' names; empty where nothing was."""
        if self.fitted is None:
            return {}
        by_name: dict[str, Any] = {}
        if self.fitted.temperature is not None:
            by_name["temperature"] = self.fitted.temperature
        if self.fitted.thresholds is not None:
            by_name["thresholds"] = self._named(self.fitted.thresholds)
        positives = self._named(self.fitted.num_positives)
        return {**by_name, "num_examples": self.fitted.num_examples, "num_positives": positives}

    def fitted_of(self, values: Mapping[str, Any]) -> Fitted:
        """What `as_json` wrote, read back; a label of which nothing stands there has the usual threshold."""
        thresholds, positives = values.get("thresholds"), values["num_positives"]
        return Fitted(
            values.get("temperature"),
            None if thresholds is None else tuple(thresholds.get(name, DEFAULT) for name in self.names),
            values["num_examples"],
            tuple(positives.get(name, 0) for name in self.names),
        )

    def _named(self, values: tuple[Any, ...]) -> Mapping[str, Any]:
        return dict(zip(self.names, values, strict=True))
