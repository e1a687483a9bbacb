"""The optimizer's groups of parameters."""

import torch
from torch import nn

from hf_accum.models.optimizer import build_optimizer


def make_model() -> nn.Sequential:
    return nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def test_biases_and_norms_do_not_decay_and_frozen_weights_are_left_alone() -> None:
    model = make_model()
    for parameter in model[1].parameters():
        parameter.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, learning_rate=0.1, weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # without a gradient only the decay moves a weight: by 1 - 0.1 * 0.5
    for name, parameter in model.named_parameters():
        decays = name in ("0.weight", "3.weight")
        torch.testing.assert_close(parameter.detach(), before[name] * (0.95 if decays else 1.0))


def test_every_trainable_parameter_is_in_one_group_once() -> None:
    model = make_model()
    optimizer = build_optimizer(model, 1e-3, 0.01)
    handed = [p for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, handed)) == sorted(map(id, model.parameters()))
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3}


def test_a_model_without_biases_has_one_group() -> None:
    optimizer = build_optimizer(nn.Linear(3, 3, bias=False), 1e-3, 0.01)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01]
