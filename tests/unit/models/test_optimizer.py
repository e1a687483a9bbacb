"""The optimizer: which parameters it moves, at which rates, with how much state."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoModel, BertConfig, BertForSequenceClassification

from hf_accum.config.lora import LoraConfig
from hf_accum.config.optimization import OptimizationFlags
from hf_accum.device.live_bytes import sum_bytes
from hf_accum.errors import UserError
from hf_accum.models.lora import add_lora
from hf_accum.models.optimizer import build_optimizer, check_optimizer, make_state
from hf_accum.run.training_state import put_back, take_state


def make_model() -> nn.Sequential:
    return nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def test_biases_and_norms_do_not_decay_and_frozen_weights_are_left_alone() -> None:
    model = make_model()
    for parameter in model[1].parameters():
        parameter.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, OptimizationFlags(learning_rate=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # without a gradient only the decay moves a weight: by 1 - 0.1 * 0.5
    for name, parameter in model.named_parameters():
        decays = name in ("0.weight", "3.weight")
        torch.testing.assert_close(parameter.detach(), before[name] * (0.95 if decays else 1.0))


def test_every_trainable_parameter_is_in_one_group_once() -> None:
    model = make_model()
    optimizer = build_optimizer(model, OptimizationFlags(learning_rate=1e-3, weight_decay=0.01))
    handed = [p for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, handed)) == sorted(map(id, model.parameters()))
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3}


def test_a_model_without_biases_has_one_group() -> None:
    optimizer = build_optimizer(nn.Linear(3, 3, bias=False), OptimizationFlags(learning_rate=1e-3, weight_decay=0.01))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01]


SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}


def bert(lora: bool = False) -> nn.Module:
    torch.manual_seed(0)
    config: Any = BertConfig(vocab_size=100, max_position_embeddings=16, **SIZES)
    config.num_labels = 3
    model = BertForSequenceClassification(config)
    return add_lora(model, LoraConfig(rank=2), task_type="SEQ_CLS") if lora else model


def rates_of(model: nn.Module, **how: Any) -> dict[str, float]:
    """As the optimizer has them."""
    optimizer = build_optimizer(model, OptimizationFlags(learning_rate=1.0, **how))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("lora", [False, True])
def test_each_layer_learns_at_the_rate_of_the_one_above_times_the_decay(lora: bool) -> None:
    rates = rates_of(bert(lora), layerwise_lr_decay=0.5, learning_rate_head=7.0)
    for name, rate in rates.items():
        if "classifier" in name:
            expected = 7.0
        elif "embeddings" in name:
            expected = 0.5**3
        elif ".layer." in name:
            expected = 0.5 ** (2 - int(name.split(".layer.")[1][0]))
        else:
            assert "pooler" in name
            expected = 1.0
        assert rate == expected, name
    assert {7.0, 1.0, 0.5, 0.25} <= set(rates.values())


def test_the_head_learns_at_the_rate_of_the_others_where_nothing_is_said() -> None:
    rates = rates_of(bert(), layerwise_lr_decay=0.5)
    assert {rate for name, rate in rates.items() if "classifier" in name} == {1.0}
    assert set(rates_of(bert(), learning_rate_head=3.0).values()) == {1.0, 3.0}


def test_a_part_that_a_model_has_not_is_refused() -> None:
    with pytest.raises(UserError, match=r"`layerwise_lr_decay` 0\.5: has to be left out: .* no list of layers"):
        rates_of(make_model(), layerwise_lr_decay=0.5)
    encoder = AutoModel.from_config(BertConfig(vocab_size=100, **SIZES))
    with pytest.raises(UserError, match="`learning_rate_head` 2: has to be left out: no head"):
        rates_of(encoder, learning_rate_head=2)


def step_of(optimizer: Any, model: nn.Module) -> None:
    for index, parameter in enumerate(model.parameters()):
        generator = torch.Generator().manual_seed(index)
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def test_a_state_of_8_bits_steps_nearly_as_one_of_32_and_takes_a_quarter() -> None:
    moved, taken = {}, {}
    for name in ("adamw", "adamw_8bit"):
        model = bert()
        before = [p.detach().clone() for p in model.parameters()]
        optimizer = build_optimizer(model, OptimizationFlags(learning_rate=1e-3, optimizer=name))
        for _ in range(3):
            step_of(optimizer, model)
        moved[name] = torch.cat([(p.detach() - b).flatten() for p, b in zip(model.parameters(), before, strict=True)])
        state = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
        taken[name] = sum_bytes(state)
    difference = (moved["adamw"] - moved["adamw_8bit"]).norm() / moved["adamw"].norm()
    assert difference < 0.05
    big, small = (
        sum(p.numel() for p in bert().parameters() if (p.numel() >= 4096) == is_big) for is_big in (True, False)
    )
    assert taken["adamw_8bit"] == pytest.approx(2 * big * (1 + 4 / 256) + 8 * small, rel=0.02)
    assert taken["adamw"] == pytest.approx(8 * (big + small), rel=0.01)


def test_a_saved_state_of_8_bits_goes_on_to_the_same_weights() -> None:
    flags = OptimizationFlags(learning_rate=1e-3, optimizer="adamw_8bit")
    one, other = bert(), bert()
    optimizer = build_optimizer(one, flags)
    scheduler = LambdaLR(optimizer, lambda step: 1.0)
    step_of(optimizer, one)
    state = take_state(one, optimizer, scheduler, None)
    other.load_state_dict(one.state_dict())
    again = build_optimizer(other, flags)
    put_back(state, other, again, LambdaLR(again, lambda step: 1.0), None)
    for model, by in ((one, optimizer), (other, again)):
        step_of(by, model)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_state_that_the_driver_moves_needs_a_cuda_device() -> None:
    with pytest.raises(UserError, match=r"`optimizer` paged_adamw_8bit: needs a CUDA device.*`optimizer adamw_8bit`"):
        check_optimizer("paged_adamw_8bit", torch.device("cpu"))
    check_optimizer("paged_adamw_8bit", torch.device("cuda"))
    check_optimizer("adamw_8bit", torch.device("cpu"))


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
def test_a_state_that_is_there_before_the_first_step_changes_nothing(name: Any) -> None:
    models = bert(), bert()
    optimizers = [build_optimizer(m, OptimizationFlags(learning_rate=1e-3, optimizer=name)) for m in models]
    make_state(optimizers[0])
    before = sum_bytes(t for s in optimizers[0].state.values() for t in s.values() if isinstance(t, torch.Tensor))
    for _ in range(2):
        for model, optimizer in zip(models, optimizers, strict=True):
            step_of(optimizer, model)
    after = sum_bytes(t for s in optimizers[0].state.values() for t in s.values() if isinstance(t, torch.Tensor))
    assert before == after > 0
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))
    make_state(optimizers[0])  # and is not made anew
    step_of(optimizers[0], models[0])
    step_of(optimizers[1], models[1])
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))
