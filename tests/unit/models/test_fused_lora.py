"""Fused LoRA layers: the result and the gradients of peft's own, whatever the layer is asked to do."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear
from torch import nn

from hf_accum.models.fused_lora import FusedLoraConv2d, FusedLoraLinear, fuse_lora


class Net(nn.Module):
    """Two linear layers, one without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., 6) -> (..., 4)."""
        return self.second(torch.tanh(self.first(x)))


def adapted(dtype: torch.dtype = torch.float64, **how: Any) -> Any:
    torch.manual_seed(0)
    how = {"r": 3, "lora_alpha": 7, "target_modules": ["first", "second"]} | how
    model = get_peft_model(Net(), LoraConfig(**how)).to(dtype)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)  # it is zero at first, and A's gradient with it
    return model


def result_and_gradients(model: Any, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    torch.manual_seed(5)
    result = model(x)
    result.sin().sum().backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    model.zero_grad(set_to_none=True)
    return [result, x.grad, *gradients]  # type: ignore[list-item]


def check_same(ours: Any, peft_s: Any, x: torch.Tensor, tolerance: float = 1e-13) -> None:
    for mine, theirs in zip(result_and_gradients(ours, x), result_and_gradients(peft_s, x), strict=True):
        assert (mine - theirs).abs().max() <= tolerance * theirs.abs().max().clamp(min=1)


@given(shape=st.lists(st.integers(1, 5), max_size=3))
def test_the_same_to_the_last_digits_in_float64(shape: list[int]) -> None:
    ours, peft_s = adapted(), adapted()
    assert fuse_lora(ours) == 2
    check_same(ours, peft_s, torch.randn(*shape, 6, dtype=torch.float64))


def test_gradients_are_those_of_finite_differences() -> None:
    model = adapted()
    fuse_lora(model)
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert torch.autograd.gradcheck(lambda x, *_: model(x), (x, *trained))


def test_of_inputs_that_need_no_gradient_none_is_computed() -> None:
    model = adapted()
    fuse_lora(model)
    model(torch.randn(2, 6, dtype=torch.float64)).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "how",
    [
        {"lora_dropout": 0.5},
        {"use_dora": True},
        {"lora_bias": True, "target_modules": ["first"]},
        {"use_rslora": True},
    ],
)
def test_what_is_more_than_plain_lora_goes_as_peft_has_it(how: dict[str, Any]) -> None:
    ours, peft_s = adapted(**how), adapted(**how)
    fuse_lora(ours)
    check_same(ours, peft_s, torch.randn(4, 6, dtype=torch.float64))


def test_merged_switched_off_and_several_adapters() -> None:
    ours, peft_s = adapted(), adapted()
    fuse_lora(ours)
    x = torch.randn(4, 6, dtype=torch.float64)
    for model in (ours, peft_s):
        torch.manual_seed(1)
        model.add_adapter("other", LoraConfig(r=2, target_modules=["first"]))
        model.double().base_model.set_adapter(["default", "other"])
    check_same(ours, peft_s, x)
    for model in (ours, peft_s):
        model.base_model.set_adapter("other")
    check_same(ours, peft_s, x)  # the second layer has no such adapter
    with torch.no_grad(), ours.disable_adapter(), peft_s.disable_adapter():
        assert torch.equal(ours(x), peft_s(x))
    for model in (ours, peft_s):
        model.base_model.set_adapter("default")
        model.merge_adapter()
    assert torch.equal(ours(x), peft_s(x))


def test_in_an_autocast_it_is_peft_s() -> None:
    ours, peft_s = adapted(torch.float32), adapted(torch.float32)
    fuse_lora(ours)
    with torch.autocast("cpu", torch.bfloat16):
        check_same(ours, peft_s, torch.randn(4, 6), tolerance=0.0)


def test_other_layers_stay_as_they_are_and_saving_knows_no_difference(tmp_path: Any) -> None:
    ours, peft_s = adapted(), adapted()
    fuse_lora(ours)
    assert {type(m) for m in ours.modules() if isinstance(m, Linear)} == {FusedLoraLinear}
    assert fuse_lora(ours) == 0
    assert list(ours.state_dict()) == list(peft_s.state_dict())
    ours.save_pretrained(tmp_path / "ours")
    peft_s.save_pretrained(tmp_path / "theirs")
    for name in ("adapter_model.safetensors",):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()


class ConvNet(nn.Module):
    """Convolutions of one pixel and of several, with a stride, and one by groups, which stays as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 1, padding="same", bias=False)
        self.second = nn.Conv2d(6, 4, (3, 5), stride=2, padding=1)
        self.third = nn.Conv2d(4, 4, 3, groups=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(number, 3, height, width) -> (number, 4, ...)."""
        return self.third(torch.tanh(self.second(torch.tanh(self.first(x)))))


@pytest.mark.parametrize("how", [{}, {"lora_dropout": 0.5}, {"use_dora": True}], ids=str)
@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups")
def test_convolutions_compute_the_same(how: dict[str, Any]) -> None:
    def adapted_convolutions() -> Any:
        torch.manual_seed(0)
        targets = ["first", "second", "third"]
        model = get_peft_model(ConvNet(), LoraConfig(r=2, lora_alpha=7, target_modules=targets, **how)).double()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter)
        return model

    ours, peft_s = adapted_convolutions(), adapted_convolutions()
    assert fuse_lora(ours) == 2
    assert sum(isinstance(module, FusedLoraConv2d) for module in ours.modules()) == 2
    check_same(ours, peft_s, torch.randn(2, 3, 11, 12, dtype=torch.float64))
    assert ours.state_dict().keys() == peft_s.state_dict().keys()
