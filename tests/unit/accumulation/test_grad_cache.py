"""In-batch negatives over a whole window: the gradient of the one big batch, however the window is cut."""

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from failing import Failing
from pair_cases import TEMPERATURE, make_encoder, make_pairs, run_window, unsplit, vectors_of
from window_cases import largest_relative_difference, make_window

from hf_accum.accumulation.capacity import Capacity, WorkingCapacity
from hf_accum.accumulation.grad_cache import InBatchNegatives
from hf_accum.accumulation.splitting import Cutter
from hf_accum.accumulation.window_cut import cut_window
from hf_accum.distributed.ranks import OneRank


@pytest.mark.parametrize("number", [1, 2, 9])
def test_every_cut_gives_the_gradient_of_one_unsplit_batch(accelerator: Accelerator, number: int) -> None:
    model = make_encoder()
    pairs = make_pairs(number)
    reference, loss = unsplit(model, pairs)
    for size in range(1, 2 * number + 1):
        for chunk_size in (1, 4, 1024):
            model.zero_grad()
            window = run_window(accelerator, model, pairs, pairs, OneRank(), size, chunk_size)
            if number == 1:  # nothing to be told from
                assert all(p.grad is None or not p.grad.any() for p in model.parameters())
                continue
            assert largest_relative_difference(model, reference) <= 1e-12, (size, chunk_size)
            assert float(window.loss_sum()) / number == pytest.approx(loss, rel=1e-12)


def test_accumulated_losses_of_small_batches_are_not_the_same(accelerator: Accelerator) -> None:
    """What this is for: the usual way tells each pair only from those of its own micro-batch."""
    model = make_encoder()
    pairs = make_pairs(8, seed=1)
    reference, _ = unsplit(model, pairs)
    for start in range(0, 8, 2):
        gradients, _ = unsplit(model, pairs[start : start + 2])
        for name, p in model.named_parameters():
            p.grad = gradients[name] / 4 + (0 if p.grad is None else p.grad)
    assert largest_relative_difference(model, reference) > 0.1


def test_dropout_is_that_of_the_rehearsal(accelerator: Accelerator) -> None:
    """The gradient is that of the loss of the very representations that were kept: a small step along it says so."""
    model = make_encoder(dropout=0.3)
    pairs = make_pairs(7)
    run_window(accelerator, model, pairs, pairs, OneRank(), size=3)
    weight = dict(model.named_parameters())["encoder.layer.0.intermediate.dense.weight"]
    assert weight.grad is not None
    gradient = weight.grad.clone()
    norm = gradient.norm()
    model.zero_grad()

    def loss_at(step: float) -> float:
        with torch.no_grad():
            weight.add_(gradient, alpha=step / float(norm))
        window = run_window(accelerator, model, pairs, pairs, OneRank(), size=3)
        model.zero_grad()
        with torch.no_grad():
            weight.sub_(gradient, alpha=step / float(norm))
        return float(window.loss_sum()) / len(pairs)

    slope = (loss_at(1e-5) - loss_at(-1e-5)) / 2e-5
    assert slope == pytest.approx(float(norm), rel=1e-5)


@pytest.mark.slow
def test_memory_that_runs_out_in_either_pass_leaves_the_gradient_as_it_is(accelerator: Accelerator) -> None:
    pairs = make_pairs(5)
    reference, loss = unsplit(make_encoder(), pairs)
    counting = Failing()
    run_window(accelerator, make_encoder(), pairs, pairs, OneRank(), 4, failing=counting)
    assert counting.num_operations > 500
    for at in range(1, counting.num_operations + 1, 79):
        model = make_encoder()
        window = run_window(accelerator, model, pairs, pairs, OneRank(), 4, failing=Failing(at))
        assert window.num_oom_replays == 1
        assert largest_relative_difference(model, reference) <= 1e-12, at
        assert float(window.loss_sum()) / len(pairs) == pytest.approx(loss, rel=1e-12)


def test_a_rank_without_pairs_runs_one_text_at_a_time_however_little_fits() -> None:
    pairs = make_pairs(1)
    window = make_window([], pairs[0], rank=1, whole=pairs)
    assert [len(piece) for piece in cut_window(window.window, Cutter(WorkingCapacity(Capacity(1)))).pieces] == [1]


def test_documents_of_one_key_are_no_negatives_of_each_other() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(4, 8, dtype=torch.float64)
    objective = InBatchNegatives(TEMPERATURE)
    right = torch.arange(4)
    apart = objective(vectors, right, vectors, torch.tensor([1, 2, 3, 4]))
    shared = objective(vectors, right, vectors, torch.tensor([1, 2, 1, 4]))
    without = objective(vectors[:2], right[:2], vectors[[0, 1, 3]], torch.tensor([1, 2, 4]))
    assert shared[0] == pytest.approx(float(without[0]))
    assert shared[0] < apart[0]
    assert shared[1] == apart[1]


@pytest.mark.parametrize(
    ("how", "message"), [({"temperature": 0}, "temperature 0"), ({"chunk_size": 0}, "chunk size 0")]
)
def test_values_that_make_no_sense_are_refused(how: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InBatchNegatives(**how)


def test_the_oracle_sees_every_text() -> None:
    model = make_encoder()
    pairs = make_pairs(3)
    vectors = vectors_of(model, [text for pair in pairs for text in pair.parts])
    assert vectors.shape == (6, 16)
    assert len(vectors.unique(dim=0)) == len({tuple(t.features["input_ids"]) for p in pairs for t in p.parts})
