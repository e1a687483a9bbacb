"""Samples: greedy, by the model as it is, without a trace."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import CONFIGS, NUM_POSITIONS, WORDS, make_decoder_config, make_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM

from hf_accum.config.lora import LoraConfig
from hf_accum.models.lora import add_lora
from hf_accum.tasks.causal_lm.data import Passage
from hf_accum.tasks.causal_lm.samples import Samples, generate
from hf_accum.tasks.language_modeling.chunked_loss import stop_before_output_layer, with_output_layer

TOKENIZER = make_tokenizer()


def make_model(architecture: str = "llama", rank: int = 2) -> nn.Module:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(CONFIGS[architecture])
    model = add_lora(base, LoraConfig(rank=rank), task_type="CAUSAL_LM", dropout=0.5)
    stop_before_output_layer(base)
    return model.train()


def passage_of(num_read: int, num_predicted: int, *, is_text: bool = False) -> Passage:
    tokens = np.arange(4, 4 + num_read + num_predicted, dtype=np.int32)
    return Passage(tokens, np.arange(len(tokens)) >= num_read, is_text=is_text)


def by_hand(model: Any, tokens: np.ndarray, number: int) -> list[int]:
    """The whole text anew for each token, without a cache."""
    ids = tokens.tolist()
    model.eval()
    with torch.inference_mode(), with_output_layer(model):
        for _ in range(number):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == 3:  # the config's end of a text
                break
    model.train()
    return ids[len(tokens) :]


@pytest.mark.parametrize("architecture", ["llama", "biogpt"])
@pytest.mark.parametrize("rank", [0, 2])
def test_the_most_likely_tokens_follow_the_prompt(architecture: str, rank: int) -> None:
    model, passage = make_model(architecture, rank), passage_of(5, 4)
    sample = generate(model, TOKENIZER, passage, 6)
    assert sample.prompt == TOKENIZER.decode(passage.tokens[:5])
    assert sample.reference == " ".join(WORDS[5:9])
    expected = by_hand(model, passage.tokens[:5], 6)
    assert sample.generated == TOKENIZER.decode(expected, skip_special_tokens=True)


def test_a_text_is_gone_on_with_from_its_middle() -> None:
    for num_special in (1, 2):
        sample = generate(make_model(), TOKENIZER, passage_of(num_special, 12 - num_special, is_text=True), 3)
        assert sample.prompt == " ".join(WORDS[:6])
        assert sample.reference == " ".join(WORDS[6:9])


@pytest.mark.parametrize("num_read", [1, 2])
def test_of_a_short_prompt_the_answer_is_not_shown(num_read: int) -> None:
    sample = generate(make_model(), TOKENIZER, passage_of(num_read, 9), 3)
    assert sample.prompt == " ".join(WORDS[:num_read])
    assert sample.reference == " ".join(WORDS[num_read : num_read + 9])


def test_only_the_first_answer_is_the_reference() -> None:
    passage = passage_of(3, 6)
    passage.is_target[5:8] = False
    assert generate(make_model(), TOKENIZER, passage, 3).reference == " ".join(WORDS[3:5])


def test_nothing_is_left_of_it() -> None:
    """Random numbers, modes, gradients, the place where the model stops: as before."""
    model = make_model()
    model.get_submodule("base_model.model.model.layers.0").eval()
    modes = [module.training for module in model.modules()]
    random.seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[union-attr]
    generate(model, TOKENIZER, passage_of(5, 4), 6)
    assert [module.training for module in model.modules()] == modes
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[:2]  # type: ignore[union-attr]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model(input_ids=torch.tensor([[5, 6]])).logits.shape[-1] == 16  # the width, not the vocabulary
    assert model(input_ids=torch.tensor([[5, 6]])).logits.requires_grad


@pytest.mark.parametrize("num_read", [3, 15, NUM_POSITIONS - 1])
@pytest.mark.parametrize("architecture", ["biogpt", "gpt2"])
def test_no_more_is_written_than_there_are_positions(architecture: str, num_read: int) -> None:
    """Of a model with learned ones; it never ends a text by itself."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(make_decoder_config(architecture, eos_token_id=None))
    model.generation_config.eos_token_id = None
    passage = passage_of(num_read, 1)
    sample = generate(model, TOKENIZER, passage, 9)
    expected = by_hand(model, passage.tokens[:num_read], min(9, NUM_POSITIONS - num_read))
    assert sample.generated == TOKENIZER.decode(expected, skip_special_tokens=True)


def test_a_sample_out_of_memory_is_left_out_and_said(tmp_path: Path) -> None:
    model, said = make_model(), list[str]()
    samples = Samples([passage_of(2, 3), passage_of(9, 4), passage_of(3, 3)], TOKENIZER, 4, tmp_path, said.append)
    errors: list[Exception] = []

    def fail(module: nn.Module, args: Any, kwargs: Any) -> None:
        if kwargs["input_ids"].shape[1] == 9:
            raise errors[-1]

    model.get_submodule("base_model.model.model").register_forward_pre_hook(fail, with_kwargs=True)
    for error in (torch.OutOfMemoryError("CUDA out of memory. Tried"), RuntimeError("can't allocate memory: you")):
        errors.append(error)
        samples.show(model, "after")
        (line,) = [line for line in said if "left out" in line]
        assert line == f"sample 2, after the training: left out, out of memory ({type(error).__name__}: {error})"
        said.clear()
        lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
        assert [line["number"] for line in lines] == [1, 3]
        assert model.training
        assert model(input_ids=torch.tensor([[5, 6]])).logits.shape[-1] == 16
    errors.append(RuntimeError("another thing"))
    with pytest.raises(RuntimeError, match="another thing"):
        samples.show(model, "after")


def test_samples_are_said_and_kept(tmp_path: Path) -> None:
    said: list[str] = []
    samples = Samples([passage_of(5, 4), passage_of(2, 3)], TOKENIZER, 4, tmp_path, said.append)
    for when in ("before", "after", "after"):
        samples.show(make_model(), when)
    assert said[0] == "sample 1, before the training"
    assert said[1] == f"  prompt:    {' '.join(WORDS[:5])}"
    assert said[3] == f"  reference: {' '.join(WORDS[5:9])}"
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [(line["when"], line["number"]) for line in lines] == [
        ("before", 1),
        ("before", 2),
        ("after", 1),
        ("after", 2),
    ]
    assert lines[0]["reference"] == " ".join(WORDS[5:9])
