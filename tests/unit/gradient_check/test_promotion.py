"""What is in float32 beside a model in float64."""

import planted
import pytest
import torch
import torch.nn.functional as F
from planted import Batch, Tensor, batches, encoder
from torch import nn

from hf_accum import check
from hf_accum.gradient_check.promotion import Promotion

CLASS_WEIGHTS = torch.tensor([1.0, 2.0, 5.0])
TEACHER = nn.Linear(planted.CLASSES, planted.CLASSES)


def by_classes(model: nn.Module, batch: Batch) -> Tensor:
    return planted.summed(model, batch, weight=CLASS_WEIGHTS)


def of_a_teacher(model: nn.Module, batch: Batch) -> Tensor:
    found = planted.logits(model, batch)
    return F.kl_div(found.log_softmax(-1), TEACHER(found).softmax(-1).detach(), reduction="sum")


def into_a_buffer(model: nn.Module, batch: Batch) -> Tensor:
    losses = F.cross_entropy(planted.logits(model, batch), batch["labels"], reduction="none")
    total, chosen = torch.zeros(len(losses)), batch["labels"] >= 0
    total[chosen] = losses[chosen]
    return total.sum()


@pytest.mark.parametrize("loss", [by_classes, of_a_teacher, into_a_buffer])
def test_a_right_loss_that_brings_float32_has_no_finding(loss: planted.Loss) -> None:
    assert check(encoder(), loss, batches(False), stock=False).kinds == ()


def test_a_mean_by_class_weights_in_float32_is_a_mean() -> None:
    def mean(model: nn.Module, batch: Batch) -> Tensor:
        return planted.summed(model, batch, "mean", weight=CLASS_WEIGHTS)

    assert check(encoder(), mean, batches(False), stock=False).kinds == ("mean_of_means",)


def test_the_product_is_that_of_float64() -> None:
    left, right = torch.rand(2, 3, dtype=torch.float64), torch.rand(3, 4)
    with Promotion():
        found = left @ right
    assert torch.equal(found, left @ right.double())


def test_a_softmax_that_is_asked_for_in_float32_has_the_gradient_of_float64() -> None:
    """Of a row that is masked whole, as of padding, by the least number of float64: in float32 that is infinite."""
    scores = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    masked = scores.masked_fill(torch.tensor([[True], [False]]), torch.finfo(torch.float64).min)
    for softmax in (F.softmax, torch.softmax, Tensor.softmax, F.log_softmax):
        with Promotion():
            found = softmax(masked, dim=-1, dtype=torch.float32)
        assert found.dtype == torch.float64
        (gradient,) = torch.autograd.grad(found[:, 0].sum(), scores, retain_graph=True)
        assert bool(gradient.isfinite().all())
    with Promotion():
        assert F.softmax(torch.zeros(3, dtype=torch.bfloat16), dim=-1, dtype=torch.float32).dtype == torch.float32


def test_an_error_that_is_none_of_types_stays() -> None:
    with Promotion(), pytest.raises(RuntimeError, match="shapes"):
        torch.ones(2, 3, dtype=torch.float64) @ torch.ones(2, 3, dtype=torch.float64)
