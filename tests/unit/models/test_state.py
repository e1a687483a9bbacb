"""What forwards may leave in a model: given back, after an error too."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import SegformerConfig, SegformerModel

from hf_accum.models.state import keeping_state


class Leaving(nn.Module):
    """Changes all that a forward can change."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.replaced, self.constant = nn.Buffer(torch.zeros(2), persistent=False), torch.ones(2)
        self.count, self.listed, self.named = 0, [1], {"a": 1}

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.register_buffer("replaced", torch.ones(3), persistent=False)
        self.register_buffer("added", torch.ones(3))
        self.new: Any = "new"
        self.count += 1
        self.constant += 1
        self.listed.append(2)
        self.named["b"] = 2
        return self.norm(self.linear(inputs))


def seen(model: Leaving) -> dict[str, Any]:
    return {
        "buffers": {name: buffer.tolist() for name, buffer in model.named_buffers()},
        "constant": model.constant.tolist(),
        "others": (model.count, list(model.listed), dict(model.named), hasattr(model, "new")),
        "modes": [module.training for module in model.modules()],
        "gradients": [p.grad for p in model.parameters()],
    }


def test_buffers_attributes_modes_and_gradients_are_as_they_were_after_an_error_too() -> None:
    model = Leaving().train()
    model.norm.eval()
    model.linear.bias.grad = gradient = torch.ones(3)
    replaced, listed, before = model.replaced, model.listed, seen(model)

    def fail() -> None:
        with keeping_state(model):
            model.train()
            model(torch.randn(4, 3)).sum().backward()
            assert seen(model)["others"] == (1, [1, 2], {"a": 1, "b": 2}, True)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    after = seen(model)
    assert after.pop("gradients")[1] is gradient
    before.pop("gradients")
    assert after == before
    assert model.replaced is replaced
    assert model.listed is listed
    assert model.linear.weight.grad is None
    assert set(model.state_dict()) == set(Leaving().state_dict())


def test_inside_the_state_can_be_put_back_at_any_time() -> None:
    model = Leaving()
    before = seen(model)
    with keeping_state(model) as put_back:
        model(torch.randn(4, 3))
        put_back()
        assert seen(model) == before
        model(torch.randn(4, 3))
    assert seen(model) == before


def test_a_module_that_was_put_in_the_place_of_another_is_out_again() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    linear = model[0]
    with keeping_state(model):
        model[0] = nn.ReLU()
        model.append(nn.ReLU())
    assert list(model) == [linear]


def test_what_was_made_in_inference_mode_is_kept_too() -> None:
    model = Leaving()
    with torch.inference_mode():
        model.constant = torch.ones(2)  # as Phi-3's frequencies of long texts, where it is first asked without grad
    with keeping_state(model), torch.inference_mode():
        model.constant += 1
    assert model.constant.tolist() == [1, 1]


def test_hooks_that_a_first_forward_puts_on_modules_are_taken_off_again() -> None:
    """transformers records outputs by hooks, and notes that they are there: twice there, each output came twice."""
    sizes: dict[str, Any] = {"hidden_sizes": [8, 8], "depths": [1, 1], "num_attention_heads": [1, 1]}
    more: dict[str, Any] = {"sr_ratios": [1, 1], "strides": [2, 2], "patch_sizes": [3, 3], "mlp_ratios": [1, 1]}
    model = SegformerModel(SegformerConfig(num_encoder_blocks=2, **sizes, **more))
    images = torch.randn(1, 3, 16, 16)
    with keeping_state(model) as put_back:
        expected = model(images, output_hidden_states=True).hidden_states
        put_back()
        model(images, output_hidden_states=True)
    found = model(images, output_hidden_states=True).hidden_states
    assert [state.shape for state in found] == [state.shape for state in expected]
    assert len(found) == 2
