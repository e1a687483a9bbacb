"""The window's gradient under fp16's loss scaling, with a real GradScaler, and under bf16 autocast."""

from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from window_cases import TASKS, batch, make_examples, make_model, make_window

from hf_accum import accumulate

TASK = TASKS["weights and smoothing"]


@pytest.fixture
def fp16_accelerator(accelerator: Accelerator) -> Iterator[Accelerator]:
    """As accelerate sets itself up for fp16 on a GPU, but for the autocast, which CPUs have not."""
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=10_000)
    accelerator.native_amp = True
    AcceleratorState._shared_state["_mixed_precision"] = "fp16"
    yield accelerator
    accelerator.native_amp = False


def run_window(accelerator: Accelerator, model: nn.Module, micro_batch_size: int, overflow: bool = False) -> None:
    examples = make_examples(TASK, [3, 9, 4, 12, 5, 7, 2])
    for micro_batch in make_window(examples, examples[0], whole=examples).micro_batches(micro_batch_size):
        with accumulate(accelerator, model, micro_batch):
            inputs, labels = batch(micro_batch.examples)
            loss = TASK.objective(model(**inputs).logits, labels)
            if overflow and micro_batch.index == 1:
                loss = loss * torch.inf
            accelerator.backward(micro_batch.scaled(loss))


def gradients(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_a_scaled_window_unscales_to_its_gradient_and_steps_once(fp16_accelerator: Accelerator) -> None:
    model = make_model(TASK).float()
    inner = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer = fp16_accelerator.prepare_optimizer(inner)
    assert getattr(optimizer, "scaler", None) is fp16_accelerator.scaler
    before = nn.utils.parameters_to_vector(model.parameters()).clone().detach()
    reference = make_model(TASK)
    run_window(Accelerator(cpu=True), reference, 7)  # float64, in one piece

    run_window(fp16_accelerator, model, 2)
    norm = fp16_accelerator.clip_grad_norm_(model.parameters(), 1e9)
    expected = gradients(reference).float()
    assert torch.allclose(gradients(model), expected, atol=1e-6 * float(expected.abs().max()))
    assert norm is not None
    assert float(norm) == pytest.approx(float(expected.norm()), rel=1e-5)
    optimizer.step()
    after = nn.utils.parameters_to_vector(model.parameters()).detach()
    assert torch.allclose(before - after, expected, atol=1e-6)
    assert not fp16_accelerator.optimizer_step_was_skipped


def test_a_window_that_overflows_anywhere_is_skipped_whole(fp16_accelerator: Accelerator) -> None:
    model = make_model(TASK).float()
    optimizer = fp16_accelerator.prepare_optimizer(torch.optim.SGD(model.parameters(), lr=1.0))
    before = nn.utils.parameters_to_vector(model.parameters()).clone().detach()
    run_window(fp16_accelerator, model, 2, overflow=True)
    fp16_accelerator.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    assert fp16_accelerator.optimizer_step_was_skipped
    assert torch.equal(before, nn.utils.parameters_to_vector(model.parameters()).detach())
    optimizer.zero_grad()
    run_window(fp16_accelerator, model, 2)
    fp16_accelerator.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    assert not fp16_accelerator.optimizer_step_was_skipped


def test_bf16_gives_the_same_gradient_up_to_its_precision(accelerator: Accelerator) -> None:
    from accelerate.state import GradientState, PartialState

    reference = make_model(TASK).float()
    run_window(accelerator, reference, 7)
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    bf16 = Accelerator(cpu=True, mixed_precision="bf16")
    for micro_batch_size in (1, 3, 7):
        model = bf16.prepare_model(make_model(TASK).float())
        run_window(bf16, model, micro_batch_size)
        found, expected = gradients(model), gradients(reference)
        assert found.dtype == torch.float32
        assert float((found - expected).norm() / expected.norm()) < 0.03
