"""The gradient of a window does not depend on how the window is cut: float64, against one unsplit batch."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from window_cases import (
    TASKS,
    batch,
    largest_relative_difference,
    make_examples,
    make_model,
    make_window,
    unsplit_gradient,
)

from hf_accum import accumulate
from hf_accum.accumulation.capacity import Capacity, WorkingCapacity
from hf_accum.accumulation.example import Example
from hf_accum.accumulation.losses import IGNORE
from hf_accum.accumulation.splitting import Cutter
from hf_accum.accumulation.time_model import KNOTS, Costs, WorkingCosts
from hf_accum.data.source import Source
from hf_accum.distributed.ranks import OneRank
from hf_accum.recipe import Pipeline, WindowStream


@pytest.mark.parametrize("name", TASKS)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(2, 12), min_size=1, max_size=17),
    micro_batch_size=st.integers(1, 17),
    seed=st.integers(0, 2**32),
)
def test_any_cut_gives_the_gradient_and_loss_of_the_unsplit_batch(
    accelerator: Accelerator, name: str, lengths: list[int], micro_batch_size: int, seed: int
) -> None:
    task = TASKS[name]
    examples = make_examples(task, lengths, seed)
    model = make_model(task, seed)
    reference, reference_loss = unsplit_gradient(model, task, examples)
    window = make_window(examples, examples[0], whole=examples)

    for micro_batch in window.micro_batches(micro_batch_size):
        with accumulate(accelerator, model, micro_batch):
            inputs, labels = batch(micro_batch.examples)
            loss = task.objective(model(**inputs).logits, labels)
            accelerator.backward(micro_batch.scaled(loss))

    assert largest_relative_difference(model, reference) <= 1e-12
    assert float(window.loss_sum()) / window.window.num_items == pytest.approx(reference_loss, rel=1e-12)
    assert window.num_micro_batches == -(-len(lengths) // micro_batch_size)


@pytest.mark.parametrize("name", ["plain", "tokens, weights and smoothing"])
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    lengths=st.lists(st.integers(2, 12), min_size=1, max_size=40),
    effective_batch_size=st.integers(1, 17),
    most=st.integers(1, 17),
    coefficients=st.tuples(*[st.floats(0, 1)] * 3).filter(any),
    beyond=st.lists(st.floats(0, 1), min_size=len(KNOTS), max_size=len(KNOTS)),
    multiple_of=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
def test_whatever_is_fastest_the_windows_of_a_pipeline_have_the_gradient_of_the_unsplit_batch(
    accelerator: Accelerator,
    name: str,
    lengths: list[int],
    effective_batch_size: int,
    most: int,
    coefficients: tuple[float, float, float],
    beyond: list[float],
    multiple_of: int,
    seed: int,
) -> None:
    """Streamed, shuffled, cut by any costs, padded to a multiple, made ahead, and collated in the background."""
    task = TASKS[name]
    examples = make_examples(task, lengths, seed)
    model = make_model(task, seed)
    stream = WindowStream(
        Source(("memory",), lambda _, start: ((i, {"index": i}) for i in range(start, len(examples))), {}),
        lambda row: row["index"],
        lambda rows: [examples[index] for _, index in rows],
        ranks=OneRank(),
        effective_batch_size=effective_batch_size,
        seed=seed,
        num_epochs=1,
    )
    costs = WorkingCosts(Costs(*coefficients, tuple(beyond)))
    cutter = Cutter(WorkingCapacity(Capacity(most)), costs, multiple_of, max_length=12)

    def collate(piece: Sequence[Example], length: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        inputs, labels = batch(piece)
        rest = (0, length - inputs["input_ids"].shape[1])
        if task.of_tokens:
            labels = F.pad(labels, rest, value=IGNORE)
        return {key: F.pad(value, rest) for key, value in inputs.items()}, labels

    seen = 0
    for window in Pipeline(stream, cutter, collate, torch.device("cpu")):
        reference, _ = unsplit_gradient(model, task, window.window.examples)
        for micro_batch in window.micro_batches(cutter):
            with accumulate(accelerator, model, micro_batch):
                inputs, labels = micro_batch.batch
                assert len(labels) <= most
                accelerator.backward(micro_batch.scaled(task.objective(model(**inputs).logits, labels)))
        assert largest_relative_difference(model, reference) <= 1e-12
        model.zero_grad()
        seen += len(window.window.examples)
    assert seen == len(examples)


@pytest.mark.parametrize("name", ["weights and smoothing", "tokens, weights and smoothing"])
def test_every_micro_batch_size_of_windows_of_1_to_17_examples(accelerator: Accelerator, name: str) -> None:
    task = TASKS[name]
    model = make_model(task)
    for num_examples in range(1, 18):
        examples = make_examples(task, [2 + (5 * i) % 11 for i in range(num_examples)], seed=num_examples)
        reference, _ = unsplit_gradient(model, task, examples)
        for micro_batch_size in range(1, num_examples + 1):
            window = make_window(examples, examples[0], whole=examples)
            for micro_batch in window.micro_batches(micro_batch_size):
                with accumulate(accelerator, model, micro_batch):
                    inputs, labels = batch(micro_batch.examples)
                    accelerator.backward(micro_batch.scaled(task.objective(model(**inputs).logits, labels)))
            assert largest_relative_difference(model, reference) <= 1e-12
            model.zero_grad()


def test_windows_of_different_numbers_of_micro_batches_follow_each_other(accelerator: Accelerator) -> None:
    """Also where a prepared loader ends in between, and where accelerate had other settings before."""
    task = TASKS["plain"]
    model = make_model(task)
    accelerator.gradient_accumulation_steps = 5
    loader = accelerator.prepare(torch.utils.data.DataLoader([1, 2, 3]))  # type: ignore[arg-type]
    for _, size in zip(loader, (4, 1, 7), strict=True):
        examples = make_examples(task, range(2, 2 + size), seed=size)
        reference, _ = unsplit_gradient(model, task, examples)
        for micro_batch in make_window(examples, examples[0], whole=examples).micro_batches(2):
            with accumulate(accelerator, model, micro_batch):
                inputs, labels = batch(micro_batch.examples)
                accelerator.backward(micro_batch.scaled(task.objective(model(**inputs).logits, labels)))
                assert accelerator.sync_gradients == (micro_batch.index == micro_batch.count - 1)
        assert largest_relative_difference(model, reference) <= 1e-12
        model.zero_grad()
