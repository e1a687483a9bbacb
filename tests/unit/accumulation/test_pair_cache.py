"""Contrastive losses of anybody's encoders: what is refused, and what memory that runs out does not change.

Their gradients, on one rank and two: tests/distributed/alone_over_ranks.py.
"""

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hf_accum.accumulation.accumulate import accumulate
from hf_accum.accumulation.grad_cache import InBatchNegatives
from hf_accum.accumulation.pair_cache import GradCache
from hf_accum.data.windows_of import windows_of
from hf_accum.errors import UserError


def run(accelerator: Accelerator, objective: Any, vectors: Any, fails_at: int | None = None) -> tuple[list[Any], Any]:
    torch.manual_seed(0)
    model = nn.Linear(2, 3).double()
    batches = [torch.randn(4, 2, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)]
    cache, calls = GradCache(accelerator, objective), 0
    for window in windows_of(accelerator, batches, batches_per_step=2):
        for micro_batch in cache.micro_batches(window, 2):
            with accumulate(accelerator, model, micro_batch):
                calls += 1
                if calls == fails_at:
                    raise torch.OutOfMemoryError("made up")
                loss = cache.scaled(micro_batch, *vectors(model, micro_batch.batch))
                if loss is not None:
                    accelerator.backward(loss)
    return [p.grad for p in model.parameters()], window  # type: ignore[possibly-unbound] (there is one)


def triple(model: nn.Module, batch: Tensor) -> list[Tensor]:
    return [model(batch), model(batch * 2), model(batch - 1)]


def of_three(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return (a @ b.T - a @ c.T).logsumexp(1)


@pytest.mark.parametrize("fails_at", [None, 2, 6])
def test_an_objective_of_three_sides_is_that_of_the_whole_window(
    accelerator: Accelerator, fails_at: int | None
) -> None:
    found, window = run(accelerator, of_three, triple, fails_at)
    assert window.num_oom_replays == (fails_at is not None)
    torch.manual_seed(0)
    model = nn.Linear(2, 3).double()
    rows = torch.cat([torch.randn(4, 2, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)])
    loss = of_three(*triple(model, rows)).mean()
    for gradient, expected in zip(found, torch.autograd.grad(loss, list(model.parameters())), strict=True):
        assert torch.allclose(gradient, expected, rtol=1e-12, atol=1e-14)
    assert float(window.loss_sum()) / 7 == pytest.approx(loss.item(), rel=1e-12)


@pytest.mark.parametrize(
    ("objective", "vectors", "message"),
    [
        (of_three, lambda m, b: [m(b)[:1], m(b), m(b)], r"vectors of the shape \(1, 3\): has to be \(2, width\)"),
        (InBatchNegatives(), lambda m, b: [m(b).sum(1), m(b)], r"vectors of the shape \(2,\)"),
        (lambda a, b: (a * b).sum(), lambda m, b: [m(b), m(b)], r"losses of the shape \(\): has to be .* \(7,\)"),
    ],
)
def test_what_are_no_vectors_or_losses_of_the_pairs_is_refused(
    accelerator: Accelerator, objective: Any, vectors: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(accelerator, objective, vectors)


def test_micro_batches_of_the_window_itself_are_refused(accelerator: Accelerator) -> None:
    """Which come once: of the first window nothing is known then, of the next what the first one had."""
    model, cache = nn.Linear(2, 3).double(), GradCache(accelerator, InBatchNegatives())
    windows = iter(windows_of(accelerator, [torch.randn(2, 2, dtype=torch.float64)] * 3, batches_per_step=1))

    def run_one(is_of_cache: bool) -> None:
        window = next(windows)
        for micro_batch in cache.micro_batches(window, 1) if is_of_cache else window.micro_batches(1):
            with accumulate(accelerator, model, micro_batch):
                vectors = model(micro_batch.batch)
                loss = cache.scaled(micro_batch, vectors, 2 * vectors)
                if loss is not None:
                    accelerator.backward(loss)
        model.zero_grad()

    with pytest.raises(UserError, match="of a window that were not kept before"):
        run_one(False)
    run_one(True)
    with pytest.raises(UserError, match="of a window that were not kept before"):
        run_one(False)
