"""Simple methods on the same split: what they tell is right where the signal is plain, and no signal is made up."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from hf_accum.evaluation.baselines import LabelledSample, by_bag_of_words, by_vectors, figures_of

WORDS = ("fever", "fracture", "rash")


def sample(number: int, seed: int) -> LabelledSample:
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, 3, number)
    noise = [" ".join(f"n{i}" for i in generator.integers(0, 30, 4)) for _ in range(number)]
    texts = [f"{words} {WORDS[target]}" for words, target in zip(noise, targets, strict=True)]
    return LabelledSample(texts, targets, list(range(number)))


def test_a_bag_of_words_finds_the_word_that_tells() -> None:
    train, held_out = sample(200, 0), sample(80, 1)
    told = by_bag_of_words(train, held_out.texts)
    assert figures_of(told, held_out.targets) == {"accuracy": 1.0, "macro_f1": 1.0}


def test_several_labels() -> None:
    train, held_out = sample(200, 0), sample(80, 1)
    several = LabelledSample(train.texts, np.eye(3, dtype=int)[train.targets], train.groups)
    told = by_bag_of_words(several, held_out.texts)
    assert told.shape == (80, 3)
    assert figures_of(told, np.eye(3, dtype=int)[held_out.targets])["micro_f1"] > 0.97


def test_vectors_are_asked_for_once_for_each_text() -> None:
    train, held_out = sample(60, 0), sample(20, 1)
    asked: list[str] = []

    def vectors_of(texts: list[str]) -> np.ndarray:
        asked.extend(texts)
        return np.array([[word in text for word in WORDS] for text in texts], dtype=np.float32)

    told = by_vectors(train, held_out.texts, vectors_of)  # type: ignore[arg-type]
    assert (told == held_out.targets).all()
    assert asked == [*train.texts, *held_out.texts]


def test_one_group_has_nothing_to_choose_a_strength_by() -> None:
    train = sample(60, 0)
    told = by_bag_of_words(LabelledSample(train.texts, train.targets, ["p"] * 60), train.texts)
    assert (told == train.targets).mean() > 0.9


def test_classes_that_occur_nowhere_are_in_no_mean() -> None:
    told, targets = np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0])
    assert figures_of(told, targets)["macro_f1"] == pytest.approx(f1_score(targets, told, average="macro"))
    right = np.eye(4, dtype=int)[[0, 1]]
    assert figures_of(right, right) == {"micro_f1": 1.0, "macro_f1": 1.0}
