"""What a task computes, as it is traced and probed: by its own functions, in the run's precision."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_accum.accumulation.example import Lengths
from hf_accum.config.recipe import RecipeConfig
from hf_accum.tuner.workload import Workload, workload_of

CPU = torch.device("cpu")


class Doubling:
    """A task whose model sees a batch of ones."""

    max_length = 9
    lengths = Lengths("patches", vary=False)
    num_parts = 2

    def __init__(self) -> None:
        self.modes: list[tuple[str, bool, bool, torch.dtype]] = []

    def _forward(self, name: str, model: Any, batch: Tensor) -> Tensor:
        found = model(batch)
        self.modes.append((name, model.training, torch.is_grad_enabled(), found.dtype))
        return found.float()

    def summed_loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        return self._forward("loss", model, batch).sum()

    def predict(self, model: nn.Module, batch: Tensor) -> object:
        return self._forward("predict", model, batch)

    def dummy_batch(self, model: nn.Module, num_examples: int, length: int, device: torch.device) -> Tensor:
        return torch.ones(num_examples, length, device=device)


def made(precision: str = "no") -> tuple[Workload, Doubling]:
    task = Doubling()
    model = nn.Linear(4, 1, bias=False)
    config = RecipeConfig(learning_rate=0.25, weight_decay=0.5)
    return workload_of(model, task, config, precision, "two classes"), task


def test_it_is_the_task_s_own_computation_and_sizes() -> None:
    work, _ = made()
    assert (work.max_length, work.lengths, work.num_parts) == (9, Doubling.lengths, 2)
    assert work.assumed == "two classes"
    optimizer = work.optimizer(work.model)
    assert {group["lr"] for group in optimizer.param_groups} == {0.25}


def test_gradients_of_micro_batches_add_up() -> None:
    work, _ = made()
    work.forward_backward(3, 4, CPU)
    work.forward_backward(2, 4, CPU)
    (weight,) = work.model.parameters()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[5.0] * 4]  # of ones, one for each example


@pytest.mark.parametrize(("precision", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_forwards_are_in_the_precision_of_the_run_and_an_evaluation_leaves_the_mode(
    precision: str, dtype: torch.dtype
) -> None:
    work, task = made(precision)
    work.forward_backward(1, 4, CPU)
    work.evaluate(1, 4, CPU)
    assert task.modes == [("loss", True, True, dtype), ("predict", False, False, dtype)]
    assert work.model.training


class Looking(nn.Linear):
    """Keeps a constant that it made in its first forward, as BEiT and DINOv3 do of positions."""

    kept: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = torch.arange(1.0, 1.0 + input.shape[-1])
        return super().forward(input) * self.kept


def test_what_an_evaluation_leaves_in_a_model_can_be_trained_with() -> None:
    work = workload_of(Looking(4, 1, bias=False), Doubling(), RecipeConfig(), "no", "")
    work.evaluate(1, 4, CPU)
    work.forward_backward(2, 4, CPU)
    (weight,) = work.model.parameters()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[20.0] * 4]  # 1 + 2 + 3 + 4, of two examples of ones
