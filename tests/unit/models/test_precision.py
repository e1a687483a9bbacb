"""What weights are kept in: frozen ones as they are multiplied, trained ones in float32, with nothing lost."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import ARCHITECTURES, save_base
from tiny_vision import save_vision_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageClassification, AutoModelForSequenceClassification

from hf_accum.config.lora import LoraConfig
from hf_accum.config.recipe import RecipeConfig
from hf_accum.errors import UserError
from hf_accum.models.precision import compute_dtype, fits_in_float32, frozen_dtype, in_float32
from hf_accum.models.spec import ModelSpec
from hf_accum.models.tokenizers import load_tokenizer
from hf_accum.models.trainable import load_trainable, without_weights

CPU = torch.device("cpu")


def config_of(**how: Any) -> RecipeConfig:
    return RecipeConfig(**{"max_length": 16, "lora": LoraConfig(rank=2), **how})


def spec_of(folder: Path, auto_class: Any, **values: Any) -> ModelSpec:
    task_types = {AutoModelForSequenceClassification: "SEQ_CLS", AutoModelForCausalLM: "CAUSAL_LM"}
    return ModelSpec(auto_class, str(folder), task_types.get(auto_class), values)


def layout(model: nn.Module) -> dict[str, tuple[tuple[int, ...], torch.dtype, bool]]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: (tuple(t.shape), t.dtype, t.requires_grad) for name, t in tensors}


def test_the_type_is_that_of_the_precision() -> None:
    assert [compute_dtype(p) for p in ("no", "bf16", "fp16")] == [torch.float32, torch.bfloat16, torch.float16]
    assert [frozen_dtype(config_of(), p) for p in ("no", "bf16", "fp16")] == [
        torch.float32,
        torch.bfloat16,
        torch.float16,
    ]
    assert frozen_dtype(config_of(frozen_dtype="float32"), "bf16") == torch.float32
    assert frozen_dtype(config_of(frozen_dtype="bfloat16"), "bf16") == torch.bfloat16


def test_where_all_is_trained_all_is_in_float32() -> None:
    assert frozen_dtype(config_of(lora=LoraConfig(rank=0)), "bf16") == torch.float32
    with pytest.raises(UserError, match=r"`frozen_dtype` bfloat16: has to be auto or float32 with `lora\.rank 0`"):
        config_of(lora=LoraConfig(rank=0), frozen_dtype="bfloat16")


@pytest.mark.parametrize(
    ("asked", "precision", "said"),
    [
        ("bfloat16", "no", "has to be auto or float32 in a run that computes in float32; .*mixed precision bf16"),
        ("float16", "bf16", "has to be auto, float32 or bfloat16 in a run .* bfloat16; .*mixed precision fp16"),
    ],
)
def test_a_type_that_the_run_does_not_compute_in_is_refused(asked: Any, precision: str, said: str) -> None:
    with pytest.raises(UserError, match=f"`frozen_dtype` {asked}: {said}"):
        frozen_dtype(config_of(frozen_dtype=asked), precision)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_frozen_weights_are_in_the_type_of_the_precision_and_trained_ones_in_float32(
    tmp_path: Path, architecture: str, quantization: Any
) -> None:
    folder = Path(save_base(tmp_path, architecture))
    spec, config = (
        spec_of(folder, AutoModelForSequenceClassification, num_labels=3),
        config_of(quantization=quantization),
    )
    loaded = load_trainable(spec, load_tokenizer(str(folder)), config, precision="bf16", device=CPU).model
    for name, parameter in loaded.named_parameters():
        is_head = ".original_module." in name or ".modules_to_save." in name
        if parameter.requires_grad or is_head:
            assert parameter.dtype == torch.float32, name
        elif parameter.dtype != torch.uint8:
            assert parameter.dtype == torch.bfloat16, name
    assert any(p.requires_grad for p in loaded.parameters())
    assert layout(loaded) == layout(without_weights(spec, config, "bf16"))


def test_values_are_those_of_the_file_rounded_once(tmp_path: Path) -> None:
    """Also of a head that the file has: it is trained, from its float32 values."""
    folder = Path(save_base(tmp_path, "bert", auto_class=AutoModelForSequenceClassification))
    stored = load_file(folder / "model.safetensors")
    spec = spec_of(folder, AutoModelForSequenceClassification)
    loaded = load_trainable(spec, load_tokenizer(str(folder)), config_of(), precision="bf16", device=CPU).model
    heads = 0
    found = {
        re.sub(r"^base_model\.model\.|\.base_layer|\.modules_to_save\.default", "", n): p
        for n, p in loaded.named_parameters()
    }
    for name, value in stored.items():
        is_head = name.startswith("classifier.")
        assert torch.equal(found[name], value if is_head else value.bfloat16()), name
        heads += is_head
    assert heads == 2
    assert not torch.equal(stored["classifier.weight"], stored["classifier.weight"].bfloat16().float())


def test_layers_with_running_statistics_stay_in_float32(tmp_path: Path) -> None:
    save_vision_model(tmp_path)
    spec = spec_of(tmp_path, AutoModelForImageClassification)
    lora = LoraConfig(rank=2, target_modules="all-linear-and-conv")
    config = config_of(lora=lora)
    model = without_weights(spec, config, "bf16")
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    assert norms
    assert {t.dtype for m in norms for t in (*m.parameters(), *m.buffers()) if t.is_floating_point()} == {
        torch.float32
    }
    convolutions = {m.weight.dtype for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and "lora" not in n}
    assert convolutions == {torch.bfloat16}


def test_the_output_layer_of_a_frozen_language_model_has_16_bits(tmp_path: Path) -> None:
    folder = Path(save_base(tmp_path, "llama", auto_class=AutoModelForCausalLM))
    spec = spec_of(folder, AutoModelForCausalLM)
    model: Any = load_trainable(spec, load_tokenizer(str(folder)), config_of(), precision="bf16", device=CPU).model
    assert model.get_output_embeddings().weight.dtype == torch.bfloat16
    assert model.config.use_cache is False


def test_inputs_of_adapters_are_not_cast_back_and_forth(tmp_path: Path) -> None:
    folder = Path(save_base(tmp_path, "llama"))
    spec = spec_of(folder, AutoModelForSequenceClassification, num_labels=3)
    for precision, casts in (("bf16", {False}), ("no", {True})):
        model = without_weights(spec, config_of(), precision)
        found = {m.cast_input_dtype_enabled for m in model.modules() if hasattr(m, "cast_input_dtype_enabled")}
        assert found == casts


# All of it in float32, for a while


def test_weights_of_16_bits_are_in_float32_inside_and_as_before_afterwards() -> None:
    model = nn.Sequential(nn.Linear(3, 3).bfloat16(), nn.Linear(3, 2))
    before = [(p.data_ptr(), p.dtype) for p in model.parameters()]
    inputs = torch.randn(2, 3)

    def fail() -> None:
        with in_float32(model):
            assert {p.dtype for p in model.parameters()} == {torch.float32}
            assert model(inputs).shape == (2, 2)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [(p.data_ptr(), p.dtype) for p in model.parameters()] == before


def test_quantised_weights_and_many_of_16_bits_do_not_fit() -> None:
    assert fits_in_float32(nn.Linear(3, 3).bfloat16())
    with torch.device("meta"):
        assert fits_in_float32(nn.Linear(2**14, 2**15))
        assert not fits_in_float32(nn.Linear(2**14, 2**15).bfloat16())
    quantised = nn.Linear(3, 3)
    quantised.weight = nn.Parameter(torch.zeros(9, dtype=torch.uint8), requires_grad=False)
    assert not fits_in_float32(quantised)
