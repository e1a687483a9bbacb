"""Pooled parts of examples: the gradient of one graph over all of them, however their window is cut."""

import random
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from failing import Failing
from hypothesis import given, settings
from hypothesis import strategies as st
from long_text_cases import POOLINGS, make_classifier, make_long_texts, run_window, unsplit
from window_cases import largest_relative_difference

from hf_accum.accumulation.part_cache import LinearLoss, pool_parts
from hf_accum.config.long_texts import WindowPooling


@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_cut_in_any_order_gives_the_gradient_of_one_graph(
    accelerator: Accelerator, pooling: WindowPooling
) -> None:
    model = make_classifier(pooling)
    for counts in ([3, 1, 2, 1, 5], [11]):
        texts = make_long_texts(counts)
        reference, loss = unsplit(model, texts, pooling)
        for size in (1, 3, 100):
            model.zero_grad()
            shuffled = random.Random(size).sample(texts, len(texts))
            window, _ = run_window(accelerator, model, shuffled, texts, size, pooling)
            assert largest_relative_difference(model, reference) <= 1e-12, (counts, size)
            assert float(window.loss_sum()) / window.window.num_items == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_gradients_of_ranks_add_up(accelerator: Accelerator, pooling: WindowPooling) -> None:
    """Each rank has its own cut, its own no-grad pass or none, or no texts at all."""
    model, texts = make_classifier(pooling), make_long_texts([1, 4, 1, 2])
    reference, _ = unsplit(model, texts, pooling)
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for rank, mine in enumerate((texts[1:2], texts[0:1] + texts[2:], [])):
        model.zero_grad()
        run_window(accelerator, model, mine, texts, 2 + rank, pooling, rank=rank)
        for name, p in model.named_parameters():
            total[name] += 0 if p.grad is None else p.grad
    for name, p in model.named_parameters():
        p.grad = total[name]
    assert largest_relative_difference(model, reference) <= 1e-12


def test_windows_by_themselves_have_another_gradient(accelerator: Accelerator) -> None:
    """What this is for: the mean of the windows' losses is not the loss of their mean."""
    model, texts = make_classifier("mean"), make_long_texts([3, 2])
    reference, _ = unsplit(model, texts, "mean")
    apart = [replace(part, weight=text.weight / len(text.parts)) for text in texts for part in text.parts]
    gradients, _ = unsplit(model, apart, "mean")
    for name, p in model.named_parameters():
        p.grad = gradients[name]
    assert largest_relative_difference(model, reference) > 0.1


def test_only_micro_batches_with_a_part_of_several_run_twice(accelerator: Accelerator) -> None:
    for counts, size, num_twice in (([1, 1, 1], 1, 0), ([2, 1, 1], 1, 2), ([2, 2], 4, 1)):
        model = make_classifier("mean")
        num_forwards = 0

        def count(*_: object) -> None:
            nonlocal num_forwards
            num_forwards += 1

        model.register_forward_hook(count)
        texts = make_long_texts(counts)
        window, seen = run_window(accelerator, model, texts, texts, size, "mean")
        assert num_forwards == window.num_micro_batches + num_twice
        assert not any(micro_batch.is_no_grad_pass for micro_batch in seen)
        assert sum(isinstance(micro_batch.batch[1], LinearLoss) for micro_batch in seen) == num_twice


def test_dropout_is_that_of_the_rehearsal(accelerator: Accelerator) -> None:
    """The loss that is noted is that of the outputs that were kept: a small step along the gradient says so."""
    model, texts = make_classifier("attention", dropout=0.3), make_long_texts([3, 1, 4])
    weight = dict(model.named_parameters())["bert.encoder.layer.0.intermediate.dense.weight"]

    def loss_at(step: float) -> float:
        model.zero_grad()
        with torch.no_grad():
            weight.add_(direction, alpha=step)
        window, _ = run_window(accelerator, model, texts, texts, 2, "attention")
        with torch.no_grad():
            weight.sub_(direction, alpha=step)
        return float(window.loss_sum()) / window.window.num_items

    direction = torch.zeros_like(weight)
    loss_at(0.0)
    assert weight.grad is not None
    norm = float(weight.grad.norm())
    direction = weight.grad / norm
    assert (loss_at(1e-5) - loss_at(-1e-5)) / 2e-5 == pytest.approx(norm, rel=1e-5)


@pytest.mark.slow
def test_memory_that_runs_out_in_either_pass_leaves_the_gradient_as_it_is(accelerator: Accelerator) -> None:
    texts = make_long_texts([3, 1, 4])
    reference, loss = unsplit(make_classifier("mean"), texts, "mean")
    counting = Failing()
    run_window(accelerator, make_classifier("mean"), texts, texts, 4, "mean", failing=counting)
    for at in range(1, counting.num_operations + 1, 97):
        model = make_classifier("mean")
        window, _ = run_window(accelerator, model, texts, texts, 4, "mean", failing=Failing(at))
        assert window.num_oom_replays == 1
        assert largest_relative_difference(model, reference) <= 1e-12, at
        assert float(window.loss_sum()) / window.window.num_items == pytest.approx(loss, rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(0, 99))
def test_what_is_pooled_is_no_other_example_s_and_in_no_order(counts: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(sum(counts), 4, generator=generator, dtype=torch.float64)
    of_each = outputs.split(counts)
    for pooling in POOLINGS:
        pooled = pool_parts(outputs, counts, pooling)
        alone = [pool_parts(rows.flip(0), [len(rows)], pooling)[0] for rows in of_each]
        torch.testing.assert_close(pooled, torch.stack(alone), rtol=1e-12, atol=1e-12)
        first = of_each[0][:1]
        assert torch.equal(pool_parts(first, [1], pooling), first[:, :-1] if pooling == "attention" else first)
    torch.testing.assert_close(pool_parts(outputs, counts, "max"), torch.stack([rows.amax(0) for rows in of_each]))


def test_half_precision_is_pooled_in_float32() -> None:
    assert pool_parts(torch.ones(2, 3, dtype=torch.bfloat16), [2], "mean").dtype == torch.float32


def test_a_linear_loss_has_its_value_and_gradient() -> None:
    outputs = torch.tensor([[1.0, -2.0]], requires_grad=True)
    loss = LinearLoss(torch.tensor(7.0), torch.tensor([[0.5, 3.0]]))(outputs)
    loss.backward()
    assert loss.item() == 7.0
    assert outputs.grad is not None
    assert outputs.grad.tolist() == [[0.5, 3.0]]
