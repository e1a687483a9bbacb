"""What simple methods reach on the same split: a bag of words, and the vectors of an encoder that is not trained.

Both with a logistic regression (scikit-learn's), whose strength is chosen on a fifth of the groups to train on. A
fine-tuned model that is not clearly better is not worth its cost.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Inverse strengths of the penalty, scikit-learn's C."""
_SHARE_TO_CHOOSE_BY = 0.2


@dataclass(frozen=True)
class LabelledSample:
    """Texts with what is to be told of them: class indices (n,), or 0 and 1 for each label (n, num_labels)."""

    texts: Sequence[str]
    targets: np.ndarray
    groups: Sequence[Any]
    """What a text is of: those of one group are kept together where a strength is chosen."""


def by_bag_of_words(train: LabelledSample, texts: Sequence[str]) -> np.ndarray:
    """What TF-IDF of words and pairs, and of 2 to 5 characters within a word, tells of the texts; as targets are."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    def features(of: Sequence[str], others: Sequence[str]) -> tuple[Any, Any]:
        words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b")
        characters = TfidfVectorizer(sublinear_tf=True, analyzer="char_wb", ngram_range=(2, 5))
        union = make_union(words, characters)
        return union.fit_transform(of), union.transform(others)

    return _chosen_and_told(train, texts, features)


def by_vectors(
    train: LabelledSample, texts: Sequence[str], vectors_of: Callable[[Sequence[str]], np.ndarray]
) -> np.ndarray:
    """What a logistic regression on the vectors of texts, (n, width), tells of the texts; as targets are."""
    from sklearn.preprocessing import StandardScaler

    known = dict(zip(train.texts, vectors_of(train.texts), strict=True))  # once each
    known |= dict(zip(texts, vectors_of(texts), strict=True))

    def features(of: Sequence[str], others: Sequence[str]) -> tuple[Any, Any]:
        first, second = (np.stack([known[text] for text in some]) for some in (of, others))
        scaler = StandardScaler().fit(first)
        return scaler.transform(first), scaler.transform(second)

    return _chosen_and_told(train, texts, features)


def figures_of(predictions: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Accuracy (of several labels: micro-F1) and macro-F1 over the classes that occur in either."""
    from sklearn.metrics import accuracy_score, f1_score

    how: dict[str, Any] = {"zero_division": 0}
    if targets.ndim == 1:
        macro = f1_score(targets, predictions, average="macro", **how)
        return {"accuracy": float(accuracy_score(targets, predictions)), "macro_f1": float(macro)}
    how["labels"] = np.flatnonzero(np.any(targets, axis=0) | np.any(predictions, axis=0))
    return {f"{of}_f1": float(f1_score(targets, predictions, average=of, **how)) for of in ("micro", "macro")}


def _chosen_and_told(train: LabelledSample, texts: Sequence[str], features: Callable[..., tuple[Any, Any]]) -> Any:
    from sklearn.model_selection import GroupShuffleSplit

    places = np.arange(len(train.texts))
    strength = 1.0
    if len(set(train.groups)) > 1:
        split = GroupShuffleSplit(1, test_size=_SHARE_TO_CHOOSE_BY, random_state=0)
        fit, choose = next(split.split(places, groups=np.asarray([str(group) for group in train.groups])))
        x, other = features([train.texts[i] for i in fit], [train.texts[i] for i in choose])

        def score(strength: float) -> tuple[float, ...]:
            told = _regression(strength, train.targets[fit]).fit(x, train.targets[fit]).predict(other)
            return tuple(figures_of(told, train.targets[choose]).values())

        strength = max(_STRENGTHS, key=score)
    x, other = features(train.texts, texts)
    return _regression(strength, train.targets).fit(x, train.targets).predict(other)


def _regression(strength: float, targets: np.ndarray) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    model = LogisticRegression(C=strength, max_iter=1_000, tol=1e-3)
    return model if targets.ndim == 1 else OneVsRestClassifier(model)
