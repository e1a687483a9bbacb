"""What a person is shown of an example: the tokenizer's own text, labels by name, what is learned."""

import random
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import WORDS, make_pair_tokenizer, make_tokenizer

from hf_accum.accumulation.grad_cache import InBatchNegatives
from hf_accum.accumulation.losses import CrossEntropy
from hf_accum.tasks.causal_lm.data import Passage
from hf_accum.tasks.causal_lm.task import CausalTexts
from hf_accum.tasks.labels import LabelColumn, Problem
from hf_accum.tasks.language_modeling.chunked_loss import ChunkedCrossEntropy
from hf_accum.tasks.masked_lm.task import MaskedTexts
from hf_accum.tasks.preview import decoded, runs_of
from hf_accum.tasks.retrieval.task import TextRetrieval
from hf_accum.tasks.text_classification.task import TextClassification, build_objective
from hf_accum.tasks.token_classification.data import Part
from hf_accum.tasks.token_classification.tags import labels_of
from hf_accum.tasks.token_classification.task import EntityTagging

TOKENIZER = make_tokenizer()


def previewed(task: Any, prepared: Any) -> list[tuple[str, str]]:
    (example,) = task.encode([("0:0", prepared)])
    return task.preview(example if not hasattr(task, "draw") else task.draw(example, 0))


def classification(problem: Problem, tokenizer: Any = TOKENIZER, **how: Any) -> TextClassification:
    labels = LabelColumn("label", problem, () if problem == "regression" else ("no", "mild", "severe"))
    return TextClassification("text", labels, build_objective(labels), tokenizer, 6, **how)


@pytest.mark.parametrize(
    ("problem", "label", "told"),
    [
        ("single_label_classification", 2, "severe"),
        ("multi_label_classification", [0.0, 1.0, 1.0], "mild, severe"),
        ("multi_label_classification", [0.0, 0.0, 0.0], "(none)"),
        ("regression", 0.25, "0.25"),
    ],
)
def test_a_text_with_its_label_by_name(problem: Problem, label: Any, told: str) -> None:
    lines = previewed(classification(problem), ("w1 w2 w3 w4 w5 w6", label))
    assert lines == [("text", "[CLS] w1 w2 w3 w4 [SEP]"), ("label", told)]


def test_a_pair_by_token_types_where_there_are_some() -> None:
    pair = (("w1 w2 w3 w4", "w5"), 0)
    task = classification("single_label_classification", make_pair_tokenizer(), pair_column="b")
    assert previewed(task, pair) == [("type 0", "[CLS] w1 w2 [SEP]"), ("type 1", "w5 [SEP]"), ("label", "no")]
    task = classification("single_label_classification", pair_column="b")
    assert previewed(task, pair) == [("texts", "[CLS] w1 w2 [SEP] w5 [SEP]"), ("label", "no")]


def test_words_with_their_tags_and_those_of_context() -> None:
    task = EntityTagging(labels_of(("sign",)), CrossEntropy(), TOKENIZER, 16)
    part = Part(("w1", "w2", "w3", "w4"), (("B-sign", "B-sign", "O", "O"),), 1, 3)
    assert previewed(task, part) == [
        ("text", "[CLS] w1 w2 w3 w4 [SEP]"),
        ("context", "w1"),
        ("words", "w2[B-sign] w3"),
        ("context", "w4"),
    ]


def test_words_with_a_tag_of_each_layer() -> None:
    labels = labels_of(("drug", "sign"), in_layers=True)
    task = EntityTagging(labels, CrossEntropy(), TOKENIZER, 16, types=("drug", "sign"))
    part = Part(("w1", "w2"), (("B-drug", "I-drug"), ("O", "B-sign")), 0, 2)
    assert previewed(task, part)[1:] == [("words", "w1[B-drug] w2[I-drug][B-sign]")]


def test_which_tokens_a_language_model_learns() -> None:
    ids = np.array(TOKENIZER("w1 w2 w3 w4")["input_ids"], dtype=np.int32)
    passage = Passage(ids, np.array([False, False, True, True, False, True]))
    assert previewed(CausalTexts(TOKENIZER, ChunkedCrossEntropy(8), 16), passage) == [
        ("read", "[CLS] w1"),
        ("learned", "w2 w3"),
        ("read", "w4"),
        ("learned", "[SEP]"),
    ]


@settings(max_examples=20)
@given(seed=st.integers(0, 1_000), length=st.integers(1, 14))
def test_hidden_tokens_and_what_is_seen_of_them(seed: int, length: int) -> None:
    """What is shown, with what is to be guessed put in, is the text as it was."""
    tokenizer = make_tokenizer(mask_token=True)
    words = random.Random(seed).choices(WORDS[:-1], k=length)
    task = MaskedTexts(tokenizer, ChunkedCrossEntropy(8), 16, seed, 0.4)
    ids = np.array(tokenizer(" ".join(words), add_special_tokens=False)["input_ids"], dtype=np.int32)
    example = task.draw(task.encode([("0:0", ids)])[0], 0)
    (_, text), (name, learned) = task.preview(example)
    assert name == "learned"
    shown = text.split()
    told = [item.rstrip(")").split(" (") for item in learned.split(", ")]
    assert len(told) == example.weight
    for place, (right, how) in zip(example.features["places"], told, strict=True):
        assert shown[place] == (right if how == "as it is" else how.removeprefix("seen as "))
        shown[place] = right
    assert shown == ["[CLS]", *words, "[SEP]"]


def test_both_texts_of_a_pair_to_retrieve() -> None:
    task = TextRetrieval("a", "b", TOKENIZER, InBatchNegatives(0.1), 4)
    assert previewed(task, ("w1", "w2 w3 w4")) == [("query", "[CLS] w1 [SEP]"), ("document", "[CLS] w2 w3 [SEP]")]


@given(st.lists(st.sampled_from("ab"), min_size=1, max_size=12))
def test_runs_are_the_whole_text_in_turn(kinds: list[str]) -> None:
    ids = np.arange(4, 4 + len(kinds))
    runs = list(runs_of(TOKENIZER, ids, np.array(kinds)))
    assert all(one[0] != other[0] for one, other in pairwise(runs))
    assert " ".join(text for _, text in runs) == decoded(TOKENIZER, ids)
    assert [kind for kind, text in runs for _ in text.split()] == kinds
