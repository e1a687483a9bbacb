"""Words that are given one by one: they have the tokens that they have within a text."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from hf_accum.models.tokenizers import load_tokenizer

SPLIT = pre_tokenizers.Split(Regex(r" ?\p{L}+| ?\d| ?[^\s\p{L}\d]+"), "isolated")


PRE_TOKENIZERS: dict[str, pre_tokenizers.PreTokenizer] = {
    "bytes": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "split and bytes": pre_tokenizers.Sequence(
        [SPLIT, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    ),
    "metaspace at the start": pre_tokenizers.Metaspace(prepend_scheme="first"),
    "metaspace": pre_tokenizers.Metaspace(prepend_scheme="always"),
    "whitespace": pre_tokenizers.Whitespace(),
}


def save_tokenizer(folder: Path, text: str, pre_tokenizer: Any = None) -> None:
    """One of byte pairs that was trained on a text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<pad>"])
    tokenizer.train_from_iterator([text] * 20, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)


@pytest.mark.parametrize("kind", PRE_TOKENIZERS)
def test_words_have_the_tokens_that_they_have_within_a_text(kind: str, tmp_path: Path) -> None:
    """A model knows words by the space before them; the tokenizer that is saved with it does the same."""
    words = ["of", "the", "patient", "with", "T2DM's", "2", "fevers", "."]
    save_tokenizer(tmp_path, " ".join(words), PRE_TOKENIZERS[kind])
    plain = AutoTokenizer.from_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path), of_words=True)
    loaded.save_pretrained(tmp_path / "saved")
    for other in (loaded, AutoTokenizer.from_pretrained(tmp_path / "saved")):
        encoded = other(words, is_split_into_words=True)
        of_text = plain(" ".join(words))["input_ids"]
        num_first = encoded.word_ids().count(0)
        assert encoded["input_ids"][num_first:] == of_text[-(len(encoded["input_ids"]) - num_first) :]
        assert list(dict.fromkeys(encoded.word_ids())) == list(range(len(words)))


def test_a_tokenizer_whose_tokens_reach_over_words_is_refused(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, "of patient T2DM's")
    with pytest.raises(ValueError, match="makes other tokens of a list of words than of a text"):
        load_tokenizer(str(tmp_path), of_words=True)
