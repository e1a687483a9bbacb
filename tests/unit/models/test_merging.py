"""An adapter merged into its base: the sum in float32, rounded once; types of files; tied weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import make_tokenizer, save_base
from transformers import AutoModelForCausalLM

from hf_accum.config.trust import Trust
from hf_accum.errors import UserError
from hf_accum.models.merging import merge, stored_dtype


def adapted_model(folder: Path, dtype: torch.dtype = torch.float32, **how: Any) -> Any:
    save_base(folder, "llama", make_tokenizer(), AutoModelForCausalLM)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    if how.pop("is_tied", False):
        model.config.tie_word_embeddings = True
        model.tie_weights()
    adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=6, init_lora_weights=False, **how))
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            weight.data = weight.data.float()
    return adapted


@pytest.mark.parametrize(
    ("stored", "into"),
    [("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float32", "float16")],
)
def test_the_sum_is_rounded_once(tmp_path: Path, stored: str, into: str) -> None:
    adapted = adapted_model(tmp_path, getattr(torch, stored), target_modules=["q_proj", "down_proj"])
    place = "model.layers.1.mlp.down_proj"
    layer = adapted.get_base_model().get_submodule(place)
    up, down = layer.lora_B["default"].weight, layer.lora_A["default"].weight
    exact = layer.base_layer.weight.double() + 3 * (up.double() @ down.double())
    other: Any = adapted.get_base_model().get_submodule("model.layers.1.mlp.up_proj").weight.detach().clone()
    merged, notes = merge(adapted, getattr(torch, into))
    assert {weight.dtype for weight in merged.parameters()} == {getattr(torch, into)}
    assert not any("lora" in name for name in merged.state_dict())
    got: Any = merged.get_submodule(place).weight
    half_a_unit = 0.5 * torch.finfo(got.dtype).eps * (1 if into != "float32" else 8)
    assert ((got.double() - exact).abs() <= 1.01 * half_a_unit * exact.abs() + 1e-7).all()
    beside: Any = merged.get_submodule("model.layers.1.mlp.up_proj").weight
    assert torch.equal(beside, other.to(got.dtype))
    assert notes == []


def test_what_was_tied_and_trained_apart_is_said(tmp_path: Path) -> None:
    adapted = adapted_model(tmp_path / "a", target_modules=["q_proj"], is_tied=True)
    merged, notes = merge(adapted, torch.float32)
    assert notes == []
    assert merged.get_output_embeddings().weight is merged.get_input_embeddings().weight  # type: ignore[operator]
    with pytest.warns(UserWarning, match="a tied layer is part of the adapter"):
        adapted = adapted_model(tmp_path / "b", target_modules=["lm_head"], is_tied=True)
    before = adapted.get_base_model().get_input_embeddings().weight.detach().clone()
    merged, notes = merge(adapted, torch.float32)
    assert notes == ["the output layer was trained apart from the embeddings, and is no longer tied to them"]
    assert merged.config.tie_word_embeddings is False  # type: ignore[union-attr]
    merged.save_pretrained(tmp_path / "out")  # type: ignore[operator]
    again: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(again.get_input_embeddings().weight, before)
    assert not torch.equal(again.lm_head.weight, before)


def test_what_is_too_large_or_not_finite_is_said(tmp_path: Path) -> None:
    adapted = adapted_model(tmp_path, target_modules=["q_proj"])
    adapted.get_base_model().model.norm.weight.data[0] = 1e5
    with pytest.raises(UserError, match=r"`dtype` float16: model\.norm\.weight has values that are too large"):
        merge(adapted, torch.float16)
    adapted = adapted_model(tmp_path, target_modules=["q_proj"])
    adapted.get_base_model().model.layers[0].self_attn.q_proj.lora_A["default"].weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"the adapter cannot be merged.*NaN"):
        merge(adapted, torch.float32)


def test_the_type_is_read_from_the_file_and_else_from_the_config(tmp_path: Path) -> None:
    folder = save_base(tmp_path / "base", "bert")
    assert stored_dtype(folder, Trust()) == "float32"
    weights = load_file(tmp_path / "base" / "model.safetensors")
    halves = {name: weight if weight.ndim < 2 else weight.bfloat16() for name, weight in weights.items()}
    save_file(halves, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    assert stored_dtype(folder, Trust()) == "bfloat16"
    (tmp_path / "base" / "model.safetensors").rename(tmp_path / "base" / "model-00001-of-00001.safetensors")
    index = '{"weight_map": {"a": "model-00001-of-00001.safetensors"}}'
    (tmp_path / "base" / "model.safetensors.index.json").write_text(index)
    assert stored_dtype(folder, Trust()) == "bfloat16"
    (tmp_path / "base" / "model.safetensors.index.json").unlink()
    assert stored_dtype(folder, Trust()) == "float32"
