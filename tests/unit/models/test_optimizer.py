"""The optimizer's groups, and the number of steps against windows that are counted one by one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hf_accum.models.optimizer import build_optimizer
from hf_accum.run.schedule import count_steps


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


@given(
    num_examples=st.integers(1, 60),
    effective_batch_size=st.integers(1, 20),
    num_epochs=st.none() | st.integers(1, 4),
    max_steps=st.none() | st.integers(1, 50),
)
def test_steps_are_the_windows_that_there_are(
    num_examples: int, effective_batch_size: int, num_epochs: int | None, max_steps: int | None
) -> None:
    if num_epochs is None and max_steps is None:
        return
    steps = 0
    for _ in range(num_epochs if num_epochs is not None else 1000):
        left = num_examples
        while left > 0 and steps != max_steps:
            left -= effective_batch_size
            steps += 1
    assert count_steps(num_examples, effective_batch_size, num_epochs, max_steps) == steps


@pytest.mark.parametrize("num_epochs", [None, 3])
def test_steps_of_a_dataset_of_unknown_size(num_epochs: int | None) -> None:
    assert count_steps(None, 32, num_epochs, 17) == 17
