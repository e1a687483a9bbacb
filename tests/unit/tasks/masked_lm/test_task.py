"""Masked texts: no token lost, a share hidden as BERT hides it, by seed, pass and example."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import WORDS, make_tokenizer
from transformers import AutoTokenizer

from hf_accum.accumulation.example import Example
from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.split import SplitData
from hf_accum.distributed.ranks import OneRank
from hf_accum.tasks.language_modeling.chunked_loss import ChunkedCrossEntropy
from hf_accum.tasks.masked_lm.data import open_plain_texts, tokens_of
from hf_accum.tasks.masked_lm.task import MaskedTexts
from hf_accum.tasks.special_tokens import Frame
from recipes.embedded.models import minilm

OBJECTIVE = ChunkedCrossEntropy()


def masked(seed: int = 0, share: float = 0.15) -> MaskedTexts:
    return MaskedTexts(AutoTokenizer.from_pretrained(minilm()), OBJECTIVE, 512, seed, share)


def example_of(task: MaskedTexts, length: int, example_id: str = "0:0") -> Example:
    tokens = np.arange(2000, 2000 + length, dtype=np.int32)
    (example,) = task.encode([(example_id, tokens)])
    return example


def test_tokens_are_hidden_as_in_bert() -> None:
    task = masked()
    example = example_of(task, 20_000)
    drawn = task.draw(example, 0)
    before, after = example.features["input_ids"], drawn.features["input_ids"]
    places = drawn.features["places"]
    assert drawn.weight == len(places)
    assert len(places) / 20_000 == pytest.approx(0.15, abs=0.01)
    assert places.min() >= 1
    assert places.max() <= 20_000  # neither [CLS] nor [SEP]
    assert (drawn.features["tokens"] == before[places]).all()
    others = np.setdiff1d(np.arange(len(before)), places)
    assert (before[others] == after[others]).all()
    assert task.tokenizer is not None
    assert (after[places] == task.tokenizer.mask_token_id).mean() == pytest.approx(0.8, abs=0.03)
    assert (after[places] == before[places]).mean() == pytest.approx(0.1, abs=0.02)


def test_what_is_hidden_comes_from_seed_pass_and_example() -> None:
    def places(seed: int, epoch: int | None, example_id: str) -> tuple[int, ...]:
        task = masked(seed)
        return tuple(task.draw(example_of(task, 100, example_id), epoch).features["places"])

    first = places(0, 0, "0:0")
    assert places(0, 0, "0:0") == first
    others = [places(1, 0, "0:0"), places(0, 1, "0:0"), places(0, 0, "0:1"), places(0, None, "0:0")]
    assert len({first, *others}) == 5
    assert places(0, None, "0:0") == others[-1]


def test_one_token_at_least_is_hidden() -> None:
    task = masked(share=1e-9)
    for length in (1, 2, 30):
        assert task.draw(example_of(task, length), 0).weight == 1


def test_places_are_those_of_the_padded_batch() -> None:
    task = masked(share=0.5)
    examples = [task.draw(example_of(task, length, f"0:{length}"), 0) for length in (9, 4)]
    inputs, targets = task.collate(examples, length=16)
    flat = inputs["input_ids"].flatten()
    expected = torch.cat([torch.from_numpy(example.features["tokens"]) for example in examples])
    assert torch.equal(targets.tokens, expected)
    hidden = [example.features["input_ids"][example.features["places"]] for example in examples]
    assert flat[targets.positions].tolist() == np.concatenate(hidden).tolist()


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


def test_the_special_tokens_are_the_tokenizer_s() -> None:
    for tokenizer in (make_tokenizer(), AutoTokenizer.from_pretrained(minilm())):
        ids = tokenizer("w1 w2", add_special_tokens=False)["input_ids"]
        assert Frame.of(tokenizer).around(np.array(ids)).tolist() == tokenizer("w1 w2")["input_ids"]


def test_a_length_without_place_for_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`max_length` 2: has to leave place for text"):
        opened(tmp_path, ["w1 w2"], 2)
