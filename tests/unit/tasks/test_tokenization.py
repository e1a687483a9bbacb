"""Texts as tokens and tensors: against what the tokenizer itself does, and what a model makes of it."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import WORDS, make_pair_tokenizer, make_tokenizer
from transformers import PreTrainedTokenizerBase

from hf_accum.accumulation.example import Example
from hf_accum.data.source import BadRow
from hf_accum.tasks.tokenization import pad, text_of, tokenize, tokenize_pairs

TOKENIZER, OF_PAIRS = make_tokenizer(), make_pair_tokenizer()
texts = st.lists(st.sampled_from((*WORDS, "unheard-of", ",")), min_size=1, max_size=12).map(" ".join)


@given(st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip))
def test_any_text_is_taken_as_it_is(text: str) -> None:
    assert text_of({"text": text, "note": None}, "text") == text


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"note": "a", "label": 1}, "no such column; the row has note, label"),
        ({}, "no such column; the row has none"),
        ({"text": None}, r"no text \(null or NaN\)"),
        ({"text": float("nan")}, r"no text \(null or NaN\)"),
        ({"text": 0.5}, "0.5 is of type float, not a text"),
        ({"text": ["a"]}, r"\['a'\] is of type list, not a text"),
        ({"text": b"a"}, "is of type bytes, not a text"),
        ({"text": ""}, "empty text"),
        ({"text": " \u2003\r\n"}, "empty text"),
        ({"text": "a\udce9"}, "not UTF-8"),
        ({"text": "\ud83d"}, "not UTF-8"),
    ],
)
def test_rows_without_a_text(row: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRow, match=said) as error:
        text_of(row, "text")
    assert error.value.field == "text"


@given(batch=st.lists(texts, min_size=1, max_size=6), max_length=st.integers(2, 14))
def test_truncation_is_the_tokenizer_s_own_and_counted(batch: list[str], max_length: int) -> None:
    tokens = tokenize(TOKENIZER, batch, max_length)
    for text, (ids, num_truncated) in zip(batch, tokens, strict=True):
        whole = TOKENIZER(text)["input_ids"]
        assert ids.tolist() == TOKENIZER(text, truncation=True, max_length=max_length)["input_ids"]
        assert num_truncated == max(0, len(whole) - max_length)
        assert len(ids) + num_truncated == len(whole)


@settings(max_examples=40)
@given(batch=st.lists(st.tuples(texts, texts), min_size=1, max_size=6), max_length=st.integers(5, 26))
def test_pairs_are_the_tokenizer_s_own(batch: list[tuple[str, str]], max_length: int) -> None:
    found = tokenize_pairs(OF_PAIRS, batch, max_length)
    how: dict[str, Any] = {"truncation": "longest_first", "max_length": max_length}
    for (one, other), (inputs, num_truncated) in zip(batch, found, strict=True):
        expected = OF_PAIRS(one, other, **how)
        assert {name: ids.tolist() for name, ids in inputs.items()} == {
            name: expected[name] for name in ("input_ids", "token_type_ids")
        }
        assert len(inputs["input_ids"]) + num_truncated == len(OF_PAIRS(one, other)["input_ids"])
    examples = [Example(str(i), len(inputs["input_ids"]), 1.0, inputs) for i, (inputs, _) in enumerate(found)]
    firsts, seconds = [one for one, _ in batch], [other for _, other in batch]
    expected = OF_PAIRS(firsts, seconds, **how, padding=True, return_tensors="pt")
    for name, tensor in pad(examples, 0).items():
        assert torch.equal(tensor, expected[name])


def test_truncation_keeps_the_token_that_ends_a_text() -> None:
    ((ids, num_truncated),) = tokenize(TOKENIZER, ["w1 w2 w3 w4 w5"], 4)
    assert TOKENIZER.decode(ids) == "[CLS] w1 w2 [SEP]"
    assert num_truncated == 3


def test_a_tokenizer_that_truncates_by_itself_is_overruled() -> None:
    """As one saved with its settings of an earlier training does."""
    tokenizer: Any = make_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    tokens = [(ids.tolist(), cut) for ids, cut in tokenize(tokenizer, ["w1 w2 w3 w4 w5", "w1"], 6)]
    assert tokens == [([2, 5, 6, 7, 8, 3], 1), ([2, 5, 3], 0)]


@given(batch=st.lists(texts, min_size=1, max_size=6))
def test_padding_is_the_tokenizer_s_own(batch: list[str]) -> None:
    tokens = tokenize(TOKENIZER, batch, 512)
    examples = [Example(str(i), len(ids), 1.0, {"input_ids": ids}) for i, (ids, _) in enumerate(tokens)]
    padded = pad(examples, 0)
    expected = TOKENIZER(batch, padding=True, return_tensors="pt")
    is_padded = not expected["attention_mask"].all()
    assert padded.keys() == ({"input_ids", "attention_mask"} if is_padded else {"input_ids"})
    for name, tensor in padded.items():
        assert tensor.dtype == torch.long
        assert torch.equal(tensor, expected[name])


def test_the_padding_token_is_any() -> None:
    examples = [Example("a", 1, 1.0, {"input_ids": [7]}), Example("b", 3, 1.0, {"input_ids": [7, 99, 7]})]
    assert pad(examples, 99)["input_ids"].tolist() == [[7, 99, 99], [7, 99, 7]]
    assert pad(examples, 99)["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]


def test_a_tokenizer_of_another_padding_side_is_padded_right_too() -> None:
    tokenizer: PreTrainedTokenizerBase = make_tokenizer()
    tokenizer.padding_side = "left"
    tokens = tokenize(tokenizer, ["w1", "w1 w2"], 9)
    examples = [Example(str(i), len(ids), 1.0, {"input_ids": ids}) for i, (ids, _) in enumerate(tokens)]
    assert pad(examples, 0)["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
