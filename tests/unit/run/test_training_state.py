"""The training's state, taken and put back: the steps after it are the same, to the last bit."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from transformers import get_scheduler

from hf_accum.run.training_state import TrainingState, put_back, take_state


def make_model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))


def adamw(model: nn.Module) -> Optimizer:
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=0.05, fused=True)


def sgd(model: nn.Module) -> Optimizer:
    return SGD(model.parameters(), lr=0.05, momentum=0.9)


def steps(model: nn.Module, optimizer: Optimizer, scheduler: Any, first: int, last: int) -> list[float]:
    losses = []
    for step in range(first, last):
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        loss = model(inputs).square().mean()
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def through_files(state: TrainingState) -> TrainingState:
    """What a checkpoint does with it."""
    from safetensors.torch import load, save

    return TrainingState(load(save(dict(state.tensors))), json.loads(json.dumps(state.numbers)))


@pytest.mark.parametrize("make_optimizer", [adamw, sgd])
@pytest.mark.parametrize("name", ["linear", "cosine", "constant_with_warmup", "polynomial", "inverse_sqrt"])
def test_steps_after_a_restore_are_those_there_would_have_been(
    make_optimizer: Callable[[nn.Module], Optimizer], name: str
) -> None:
    def start(seed: int) -> tuple[nn.Module, Optimizer, Any]:
        model = make_model(seed)
        optimizer = make_optimizer(model)
        return model, optimizer, get_scheduler(name, optimizer, 3, 20)

    model, optimizer, scheduler = start(0)
    steps(model, optimizer, scheduler, 0, 7)
    taken = take_state(model, optimizer, scheduler, None)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    losses = steps(model, optimizer, scheduler, 7, 12)  # which do not change what was taken

    other, its_optimizer, its_scheduler = start(1)
    steps(other, its_optimizer, its_scheduler, 0, 2)
    with torch.no_grad():
        for n, p in other.named_parameters():
            p.copy_(weights[n])
    put_back(through_files(taken), other, its_optimizer, its_scheduler, None)
    assert steps(other, its_optimizer, its_scheduler, 7, 12) == losses
    for one, same in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(one, same)
    assert scheduler.get_last_lr() == its_scheduler.get_last_lr()


def test_the_state_of_another_model_is_refused() -> None:
    model = make_model(0)
    optimizer = adamw(model)
    scheduler = get_scheduler("linear", optimizer, 0, 10)
    steps(model, optimizer, scheduler, 0, 2)
    taken = take_state(model, optimizer, scheduler, None)
    wider: nn.Module = nn.Sequential(nn.Linear(4, 7), nn.BatchNorm1d(7), nn.Linear(7, 2))
    its_optimizer = adamw(wider)
    with pytest.raises(ValueError, match="of another model"):
        put_back(taken, wider, its_optimizer, get_scheduler("linear", its_optimizer, 0, 10), None)
    its_optimizer = sgd(model)
    with pytest.raises(ValueError, match="of another optimizer"):
        put_back(taken, model, its_optimizer, get_scheduler("linear", its_optimizer, 0, 10), None)


def test_a_learning_rate_that_was_allowed_to_change_is_heeded() -> None:
    model = make_model(0)
    optimizer = AdamW(model.parameters(), lr=0.5)
    scheduler: Any = get_scheduler("linear", optimizer, 0, 10)
    steps(model, optimizer, scheduler, 0, 4)
    taken = through_files(take_state(model, optimizer, scheduler, None))
    other = AdamW(model.parameters(), lr=0.25, weight_decay=0.125)
    its_scheduler: Any = get_scheduler("linear", other, 0, 10)
    put_back(taken, model, other, its_scheduler, None)
    assert other.param_groups[0]["lr"] == its_scheduler.get_last_lr()[0] == 0.25 * 0.6
    assert other.param_groups[0]["weight_decay"] == 0.125
    steps(model, other, its_scheduler, 4, 5)
    assert other.param_groups[0]["lr"] == 0.25 * 0.5


def test_a_scaler_s_numbers_come_back() -> None:
    model = make_model(0)
    optimizer = adamw(model)
    scheduler = get_scheduler("linear", optimizer, 0, 10)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))
    taken = take_state(model, optimizer, scheduler, scaler)
    other = torch.amp.GradScaler("cpu", init_scale=2.0)
    other.scale(torch.ones(()))
    put_back(through_files(taken), model, optimizer, scheduler, other)
    assert other.get_scale() == 8.0


def test_a_state_is_a_copy() -> None:
    model = make_model(0)
    optimizer = adamw(model)
    scheduler = get_scheduler("linear", optimizer, 0, 10)
    steps(model, optimizer, scheduler, 0, 2)
    taken = take_state(model, optimizer, scheduler, None)
    before = {name: tensor.clone() for name, tensor in taken.tensors.items()}
    steps(model, optimizer, scheduler, 2, 5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in taken.tensors.items())
    moments: list[Tensor] = [tensor for name, tensor in taken.tensors.items() if name.endswith("exp_avg")]
    assert len(moments) == 6
