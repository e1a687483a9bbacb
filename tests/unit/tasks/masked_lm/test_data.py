"""Plain texts as parts of tokens: no token is lost."""

import json
from pathlib import Path

import pytest
from tiny import WORDS, make_tokenizer
from transformers import AutoTokenizer

from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.split import SplitData
from hf_accum.distributed.ranks import OneRank
from hf_accum.tasks.masked_lm.data import open_plain_texts, tokens_of
from hf_accum.tasks.special_tokens import Frame
from recipes.embedded.models import minilm


def opened(folder: Path, texts: list[str], max_length: int) -> SplitData:
    file = folder / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = RecipeConfig(max_length=max_length, eval_fraction=0.3)
    how = {"text_column": "text", "group_column": None}
    return open_plain_texts(str(file), OneRank(), config, make_tokenizer(), **how)


@pytest.mark.parametrize("max_length", [3, 7, 100])
def test_no_token_of_a_long_text_is_lost(tmp_path: Path, max_length: int) -> None:
    texts = [" ".join(WORDS[index % 40] for index in range(start, start + 1 + 3 * start)) for start in range(20)]
    tokenizer = make_tokenizer()
    data = opened(tmp_path, texts, max_length)
    parts: dict[int, list[int]] = {}
    for number, row in data.source.read(0, 0):
        assert isinstance(row, dict)
        tokens = tokens_of(row)
        assert 1 <= len(tokens) <= max_length - Frame.of(tokenizer).size
        parts.setdefault(number // data.source.parts_per_row, []).extend(tokens.tolist())
    assert [parts[index] for index in range(20)] == [
        tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts
    ]
    expected = sum(-(-len(whole) // (max_length - 2)) for whole in parts.values())
    assert (data.num_train or 0) + (data.num_held_out or 0) == expected


def test_a_text_of_which_no_token_is_left_is_a_bad_row(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text(json.dumps({"text": "w1"}) + "\n" + json.dumps({"text": "\u200b"}) + "\n")
    how = {"text_column": "text", "group_column": None}
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    with pytest.raises(ValueError, match=r"row 2: field 'text': .* has no token"):
        open_plain_texts(str(file), OneRank(), RecipeConfig(), tokenizer, **how)


def test_a_length_without_place_for_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`max_length` 2: has to leave place for text"):
        opened(tmp_path, ["w1 w2"], 2)
