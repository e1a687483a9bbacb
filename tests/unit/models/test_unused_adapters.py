"""Adapters on layers that the task never reads: which are taken off, which stay, and what is saved of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, BertModel, SiglipConfig, SiglipForImageClassification

from hf_accum.config.lora import LoraConfig
from hf_accum.models.lora import add_lora
from hf_accum.models.saving import load_weights, save_model
from hf_accum.models.unused_adapters import leave_out_unused_adapters

IDS = torch.arange(1, 13).reshape(2, 6)
SIZES: dict[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


class Nothing:
    """A tokenizer that has no files."""

    def save_pretrained(self, save_directory: str, /) -> None: ...


def encoder(targets: list[str] | str = "all-linear") -> tuple[Any, LoraConfig]:
    lora = LoraConfig(rank=2, target_modules=targets)
    torch.manual_seed(0)
    return add_lora(BertModel(BertConfig(vocab_size=20, **SIZES)), lora, task_type="FEATURE_EXTRACTION"), lora


def without_gradient(model: nn.Module, loss: Tensor) -> list[str]:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    return [name for (name, _), gradient in zip(named, found, strict=True) if gradient is None]


@pytest.mark.parametrize(("read", "expected"), [("last_hidden_state", ["pooler.dense"]), ("pooler_output", [])])
def test_what_the_loss_reads_keeps_its_adapters(read: str, expected: list[str]) -> None:
    model, lora = encoder()

    def loss() -> Tensor:
        return getattr(model(IDS), read).sum()

    before = {name: p.clone() for name, p in model.named_parameters()}
    random = torch.get_rng_state()
    assert leave_out_unused_adapters(model, lora, loss) == expected
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in model.modules())
    assert without_gradient(model, loss()) == []
    for name, parameter in model.named_parameters():
        was = before.get(name, before.get(name.replace("pooler.dense.", "pooler.dense.base_layer.")))
        assert was is not None
        assert torch.equal(parameter, was), name
    assert model(IDS).pooler_output.shape == (2, 8)


def test_another_program_makes_the_same_adapters_of_the_files(tmp_path: Path) -> None:
    model, lora = encoder()
    leave_out_unused_adapters(model, lora, lambda: model(IDS).last_hidden_state.sum())
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    save_model(model, Nothing(), tmp_path)
    targets = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert len(targets) == 4 * 6
    torch.manual_seed(0)
    plain = BertModel(BertConfig(vocab_size=20, **SIZES))
    again = PeftModel.from_pretrained(plain, str(tmp_path)).eval()
    assert [n for n, _ in again.named_parameters()] == [n for n, _ in model.named_parameters()]
    torch.testing.assert_close(again(IDS).last_hidden_state, model.eval()(IDS).last_hidden_state)


def test_weights_of_an_older_adapter_that_nothing_reads_are_passed_over(tmp_path: Path) -> None:
    older, _ = encoder()
    for name, parameter in older.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    save_model(older, Nothing(), tmp_path)
    model, lora = encoder()
    leave_out_unused_adapters(model, lora, lambda: model(IDS).last_hidden_state.sum())
    load_weights(model, tmp_path)
    torch.testing.assert_close(model.eval()(IDS).last_hidden_state, older.eval()(IDS).last_hidden_state)


@pytest.mark.parametrize("targets", [["query", "dense"], r".*dense"])
def test_targets_by_their_names_stay(targets: Any) -> None:
    model, lora = encoder(targets)
    assert leave_out_unused_adapters(model, lora, lambda: model(IDS).last_hidden_state.sum()) == []
    assert any("pooler" in name for name in without_gradient(model, model(IDS).last_hidden_state.sum()))


def test_a_model_without_adapters_is_left_as_it_is() -> None:
    assert leave_out_unused_adapters(nn.Linear(2, 2), LoraConfig(rank=0), lambda: torch.zeros(())) == []


class Routed(nn.Module):
    """Of which one layer is not run, one is not read, and one is dropped in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.run, self.not_run, self.not_read, self.dropped = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, values: Tensor) -> Tensor:
        self.not_read(values)
        values = self.run(values)
        return values if self.training else self.dropped(values)


def routed() -> Any:
    return get_peft_model(Routed(), PeftLoraConfig(r=2, target_modules="all-linear"))  # type: ignore[arg-type]


def test_a_layer_that_was_not_run_may_be_in_another_forward() -> None:
    model = routed()
    assert leave_out_unused_adapters(model, LoraConfig(rank=2), lambda: model(torch.ones(1, 4)).sum()) == ["not_read"]


def failing() -> Tensor:
    raise RuntimeError("no such texts")


@pytest.mark.parametrize("loss", [failing, lambda: torch.zeros(())])
def test_where_nothing_is_found_out_all_stay(loss: Callable[[], Tensor]) -> None:
    model = routed()
    names = [name for name, _ in model.named_parameters()]
    assert leave_out_unused_adapters(model, LoraConfig(rank=2), loss) == []
    assert [name for name, _ in model.named_parameters()] == names
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_of_images_whose_own_pooling_head_is_not_read() -> None:
    sizes = {**SIZES, "num_hidden_layers": 1, "image_size": 8, "patch_size": 4}
    tokens = {"bos_token_id": 0, "eos_token_id": 1}
    config: Any = cast(Any, SiglipConfig)(vision_config=sizes, text_config=tokens, num_labels=2)
    plain: Any = SiglipForImageClassification(config)
    lora = LoraConfig(rank=2)
    model = add_lora(plain, lora, task_type=None)

    def loss() -> Tensor:
        return model(pixel_values=torch.zeros(2, 3, 8, 8)).logits.sum()

    left_out = leave_out_unused_adapters(model, lora, loss)
    assert sorted(left_out) == [f"vision_model.head.{name}" for name in ("attention.out_proj", "mlp.fc1", "mlp.fc2")]
    assert without_gradient(model, loss()) == []
