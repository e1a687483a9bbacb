"""What would make a window's gradient wrong unseen is an error that says so, or warned of."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_post_hooks
from window_cases import TASKS, make_examples, make_window

from hf_accum.accumulation.accumulate import accumulate
from hf_accum.accumulation.execution import MicroBatch, WindowExecution
from hf_accum.accumulation.guard import leaves_of, norms_of
from hf_accum.errors import UserError


def make_execution(num_examples: int) -> WindowExecution:
    examples = make_examples(TASKS["plain"], range(2, 2 + num_examples))
    return make_window(examples, examples[0], whole=examples)


def loss_of(model: nn.Module, micro_batch: MicroBatch) -> Tensor:
    inputs = torch.tensor([float(e.length) for e in micro_batch.examples], dtype=torch.float64)[:, None]
    return model(inputs).pow(2).sum()


def run(
    accelerator: Accelerator,
    models: Any,
    execution: WindowExecution,
    loss_of: Callable[[MicroBatch], Tensor],
    between: Callable[[MicroBatch], object] = lambda micro_batch: None,
) -> None:
    for micro_batch in execution.micro_batches(2):
        with accumulate(accelerator, models, micro_batch):
            accelerator.backward(micro_batch.scaled(loss_of(micro_batch)))
        between(micro_batch)


def linear() -> nn.Module:
    return nn.Linear(1, 1).double()


def at(index: int, work: Callable[[], object]) -> Callable[[MicroBatch], None]:
    def between(micro_batch: MicroBatch) -> None:
        if micro_batch.index == index:
            work()

    return between


def test_an_optimizer_s_step_within_a_window_is_an_error(accelerator: Accelerator) -> None:
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UserError, match="2 parameters were changed within the window"):
        run(accelerator, model, make_execution(5), lambda m: loss_of(model, m), at(1, optimizer.step))
    assert all(p.grad is None for p in model.parameters())


def test_a_step_behind_the_last_micro_batch_is_none(accelerator: Accelerator) -> None:
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        run(accelerator, model, make_execution(5), lambda m: loss_of(model, m))
        optimizer.step()
        optimizer.zero_grad()


class Experts(nn.Module):
    """Weights that are no layers, as those of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.5]], dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight


def test_adapters_of_weights_that_are_no_layers_change_nothing(accelerator: Accelerator) -> None:
    """peft sets the frozen weight to itself in each forward; one that is really trained is watched as any other."""
    config = LoraConfig(r=1, target_parameters=["0.weight"])
    model = get_peft_model(nn.Sequential(Experts()), config).double()  # type: ignore[arg-type]
    execution = make_execution(5)
    run(accelerator, model, execution, lambda m: loss_of(model, m))
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    lengths = torch.tensor([float(e.length) for e in execution.window.examples], dtype=torch.float64)[:, None]
    (model(lengths).pow(2).sum() / execution.window.num_items).backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert any(bool(gradient.any()) for gradient in expected.values())
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], expected[name], rtol=1e-12, atol=0) for name in expected)

    adapter = next(p for p in model.parameters() if p.requires_grad)
    model.zero_grad()
    move = torch.no_grad()(adapter.zero_)
    with pytest.raises(UserError, match="1 parameters were changed within the window"):
        run(accelerator, model, make_execution(5), lambda m: loss_of(model, m), at(0, move))


class Unseen(torch.optim.Optimizer):
    """Its step counts as no change for torch, as that of a kernel which is given addresses (bitsandbytes)."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.add_(1.0)


def test_a_step_that_torch_does_not_see_is_an_error_and_that_of_another_model_none(accelerator: Accelerator) -> None:
    model, other = linear(), linear()
    num_hooks = len(_global_optimizer_post_hooks)
    run(accelerator, model, make_execution(5), lambda m: loss_of(model, m), at(1, Unseen(other.parameters()).step))
    model.zero_grad()
    optimizer = Unseen(model.parameters())
    with pytest.raises(UserError, match="an optimizer of its model stepped within the window"):
        run(accelerator, model, make_execution(5), lambda m: loss_of(model, m), at(1, optimizer.step))
    run(accelerator, model, make_execution(5), lambda m: loss_of(model, m), at(2, optimizer.step))
    assert len(_global_optimizer_post_hooks) == num_hooks


def test_a_forward_that_writes_into_weights_unseen_by_torch_in_a_later_window_is_an_error(
    accelerator: Accelerator,
) -> None:
    class Moving(nn.Linear):
        calls = 0

        def forward(self, input: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 8:  # a window has three
                self.weight.data.mul_(1.001)
            return super().forward(input)

    model = Moving(1, 1).double()
    for _ in range(2):
        run(accelerator, model, make_execution(5), lambda m: loss_of(model, m))
        model.zero_grad()
    with pytest.raises(UserError, match="weights were changed within the window unseen by torch"):
        run(accelerator, model, make_execution(5), lambda m: loss_of(model, m))
    assert model.calls == 9
    run(accelerator, model, make_execution(5), lambda m: loss_of(model, m))


def test_weights_that_are_not_numbers_count_as_unchanged() -> None:
    values = [torch.tensor([float("nan"), 1.0]), torch.tensor([3.0, 4.0]), torch.tensor([1])]
    assert norms_of(values).tolist() == [0.0, 5.0]
    assert norms_of([]).tolist() == []


def test_lazy_parameters_are_made_within_the_first_window(accelerator: Accelerator) -> None:
    model = nn.LazyLinear(1).double()
    run(accelerator, model, make_execution(5), lambda m: loss_of(model, m))
    assert model.weight.grad is not None


@pytest.mark.parametrize("value", [True, False])
def test_a_parameter_frozen_or_thawed_within_a_window_is_an_error(accelerator: Accelerator, value: bool) -> None:
    model = nn.Linear(1, 1).double()
    model.bias.requires_grad_(not value)
    with pytest.raises(UserError, match="1 parameters were frozen or thawed within the window"):
        run(
            accelerator,
            model,
            make_execution(5),
            lambda m: loss_of(model, m),
            at(0, lambda: model.bias.requires_grad_(value)),
        )


def test_a_loss_that_trains_another_model_too_is_an_error_and_both_can_be_given(accelerator: Accelerator) -> None:
    model, other = linear(), linear()
    both = lambda m: loss_of(model, m) + loss_of(other, m)  # noqa: E731
    with pytest.raises(UserError, match=r"trains 2 parameters that are not of the model .*\[model, other\]"):
        run(accelerator, model, make_execution(5), both)
    other.zero_grad()
    execution = make_execution(5)
    run(accelerator, [model, other], execution, both)
    lengths = torch.tensor([float(e.length) for e in execution.window.examples], dtype=torch.float64)[:, None]
    for one in (model, other):
        expected = torch.autograd.grad(one(lengths).pow(2).sum() / execution.window.num_items, list(one.parameters()))
        for parameter, gradient in zip(one.parameters(), expected, strict=True):
            assert parameter.grad is not None
            assert torch.allclose(parameter.grad, gradient, rtol=1e-12, atol=0)


def test_a_loss_that_trains_a_tensor_which_is_no_parameter_is_an_error(accelerator: Accelerator) -> None:
    """But not one that is made in each forward, as an input whose gradient a penalty is of."""
    model, scale = linear(), torch.ones(1, requires_grad=True, dtype=torch.float64)
    run(
        accelerator,
        model,
        make_execution(5),
        lambda m: loss_of(model, m) * torch.ones(1, requires_grad=True, dtype=torch.float64),
    )
    model.zero_grad()
    with pytest.raises(UserError, match=r"train 1 tensors that are no parameters of a model \(one of shape \(1,\)\)"):
        run(accelerator, model, make_execution(5), lambda m: loss_of(model, m) * scale)
    assert all(p.grad is None for p in model.parameters())


def test_both_models_start_anew_where_memory_runs_out_in_one(accelerator: Accelerator) -> None:
    gradients = []
    for fails in (False, True):
        torch.manual_seed(0)
        model, other = linear(), linear()
        left = [1] if fails else []

        def both(micro_batch: MicroBatch, model: Any = model, other: Any = other, left: Any = left) -> Tensor:
            first = loss_of(model, micro_batch)
            if micro_batch.index == 1 and left:
                left.pop()
                raise torch.OutOfMemoryError("made up")
            return first + loss_of(other, micro_batch)

        execution = make_execution(5)
        run(accelerator, [model, other], execution, both)
        assert execution.num_oom_replays == fails
        gradients.append([p.grad for one in (model, other) for p in one.parameters()])
    for without, with_replay in zip(*gradients, strict=True):
        assert without is not None
        assert with_replay is not None
        assert torch.allclose(without, with_replay, rtol=1e-12, atol=0)


def test_an_accumulate_inside_of_another_is_an_error(accelerator: Accelerator) -> None:
    model, other = linear(), linear()

    def nested(micro_batch: MicroBatch) -> Tensor:
        with accumulate(accelerator, other, micro_batch):
            return loss_of(model, micro_batch)

    with pytest.raises(UserError, match="`accumulate` inside of another"):
        run(accelerator, model, make_execution(5), nested)
    run(accelerator, model, make_execution(5), lambda m: loss_of(model, m))  # the next is not inside of anything


def test_hooks_on_gradients_are_warned_of_once(accelerator: Accelerator) -> None:
    model = nn.Linear(1, 1).double()
    calls: list[Tensor] = []
    model.weight.register_hook(calls.append)
    with pytest.warns(UserWarning, match=r"1 parameters have hooks on their gradients \(weight\)"):
        run(accelerator, model, make_execution(5), lambda m: loss_of(model, m))
    assert len(calls) == 3
    model.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(accelerator, model, make_execution(5), lambda m: loss_of(model, m))


def test_leaves_are_what_a_backward_gives_gradients_to() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    model[0].bias.requires_grad_(False)
    loss = model(torch.ones(3, 2)).sum()
    found = {id(leaf) for leaf in leaves_of(loss)}
    loss.backward()
    assert found == {id(p) for p in model.parameters() if p.grad is not None}
    assert leaves_of(loss.detach()) == []
