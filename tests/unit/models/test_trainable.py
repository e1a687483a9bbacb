"""The model of a recipe by its flags: the same for the same seed, and without weights laid out as with them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import save_base
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

from hf_accum.config.lora import LoraConfig
from hf_accum.config.recipe import RecipeConfig
from hf_accum.errors import UserError
from hf_accum.models.spec import ModelSpec
from hf_accum.models.tokenizers import load_tokenizer
from hf_accum.models.trainable import Trainable, load_trainable, without_weights

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return save_base(tmp_path, "bert")


def spec_of(folder: str, **how: Any) -> ModelSpec:
    values = {"task_type": "SEQ_CLS", "config_values": {"num_labels": 3}} | how
    return ModelSpec(AutoModelForSequenceClassification, folder, **values)


def config_of(seed: int = 0, rank: int = 2, **flags: Any) -> RecipeConfig:
    return RecipeConfig(max_length=16, seed=seed, lora=LoraConfig(rank=rank), **flags)


def load(folder: str, config: RecipeConfig, **how: Any) -> Trainable:
    return load_trainable(spec_of(folder, **how), load_tokenizer(folder), config, device=CPU)


def test_what_is_new_comes_from_the_seed(folder: str) -> None:
    torch.manual_seed(1)
    first = load(folder, config_of()).model.state_dict()
    torch.manual_seed(2)
    second = load(folder, config_of()).model.state_dict()
    other = load(folder, config_of(seed=1)).model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    differing = {name for name in first if not torch.equal(first[name], other[name])}
    assert any("lora_A" in name for name in differing)
    assert any("classifier" in name for name in differing)
    assert not any("base_layer" in name for name in differing)


@pytest.mark.parametrize("rank", [0, 2])
def test_the_model_without_weights_has_the_same_parameters(folder: str, rank: int) -> None:
    config = config_of(rank=rank)
    loaded, planned = load(folder, config).model, without_weights(spec_of(folder), config)
    assert {p.device.type for p in planned.parameters()} == {"meta"}
    assert [(n, p.shape, p.requires_grad) for n, p in planned.named_parameters()] == [
        (n, p.shape, p.requires_grad) for n, p in loaded.named_parameters()
    ]
    assert loaded.training
    assert planned.training


def test_checkpointing_is_asked_for_by_the_flag_or_later(folder: str) -> None:
    def is_on(model: Any) -> bool:
        return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())

    trainable = load(folder, config_of())
    assert not is_on(trainable.model)
    trainable.checkpoint()
    assert is_on(trainable.model)
    assert is_on(without_weights(spec_of(folder), config_of(gradient_checkpointing=True)))
    assert not is_on(without_weights(spec_of(folder), config_of()))


def test_the_preparation_sees_the_model_of_transformers_once(folder: str) -> None:
    seen: list[Any] = []
    trainable = load(folder, config_of(), prepare=seen.append)
    assert seen == [trainable.base]
    without_weights(spec_of(folder, prepare=seen.append), config_of())
    assert len(seen) == 2


def test_the_preparation_runs_a_new_head_in_float32_on_weights_in_bfloat16(folder: str) -> None:
    def run(model: Any) -> None:
        model(input_ids=torch.tensor([[1, 2, 3]]))

    trainable = load_trainable(
        ModelSpec(AutoModelForMaskedLM, folder, "MASKED_LM", prepare=run),
        load_tokenizer(folder),
        config_of(),
        precision="bf16",
        device=CPU,
    )
    assert {p.dtype for p in trainable.model.parameters()} == {torch.bfloat16, torch.float32}


def test_a_model_that_has_to_have_weights_for_all_is_refused_without(folder: str, tmp_path: Path) -> None:
    llama = save_base(tmp_path / "llama", "llama")
    spec = ModelSpec(AutoModelForCausalLM, llama, "CAUSAL_LM", has_to_be="a causal language model")
    with pytest.raises(UserError, match=r"has to be a causal language model: it has no weights for lm_head"):
        load_trainable(spec, load_tokenizer(llama), config_of(), device=CPU)
