"""A window's execution: a micro-batch that is used in a wrong way is an error, and settings are given back."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from window_cases import TASKS, batch, make_examples, make_model, make_window

from hf_accum.accumulation.accumulate import accumulate
from hf_accum.accumulation.example import Example
from hf_accum.accumulation.execution import MicroBatch, WindowExecution
from hf_accum.errors import UserError

TASK = TASKS["plain"]


def execution_of(num_examples: int = 5) -> WindowExecution:
    examples = make_examples(TASK, range(2, 2 + num_examples))
    return make_window(examples, examples[0], whole=examples)


def loss_of(model: nn.Module, micro_batch: MicroBatch) -> Tensor:
    inputs, labels = batch(micro_batch.examples)
    return TASK.objective(model(**inputs).logits, labels)


Body = Callable[[Accelerator, nn.Module, MicroBatch], object]


def without_scaled(accelerator: Accelerator, model: nn.Module, micro_batch: MicroBatch) -> None:
    accelerator.backward(loss_of(model, micro_batch))


def with_a_scale_by_hand(accelerator: Accelerator, model: nn.Module, micro_batch: MicroBatch) -> None:
    accelerator.backward(loss_of(model, micro_batch) * micro_batch.scale)


def with_two(accelerator: Accelerator, model: nn.Module, micro_batch: MicroBatch) -> None:
    for _ in range(2):
        accelerator.backward(micro_batch.scaled(loss_of(model, micro_batch)))


def without_backward(accelerator: Accelerator, model: nn.Module, micro_batch: MicroBatch) -> None:
    micro_batch.scaled(loss_of(model, micro_batch))


def with_the_backward_of_another_loss(accelerator: Accelerator, model: nn.Module, micro_batch: MicroBatch) -> None:
    loss = loss_of(model, micro_batch)
    micro_batch.scaled(loss)
    accelerator.backward(loss)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (without_scaled, r"ended without `micro_batch.scaled\(loss\)`"),
        (with_a_scale_by_hand, r"ended without `micro_batch.scaled\(loss\)`"),
        (with_two, "scaled 2 losses: has to be one"),
        (without_backward, "ended without the backward of its scaled loss"),
        (with_the_backward_of_another_loss, "ended without the backward of its scaled loss"),
    ],
)
@pytest.mark.parametrize("at", [0, 2])
def test_a_micro_batch_that_is_not_run_as_it_has_to_be_is_an_error(
    accelerator: Accelerator, body: Body, said: str, at: int
) -> None:
    model = make_model(TASK)

    def run() -> None:
        for micro_batch in execution_of().micro_batches(2):
            with accumulate(accelerator, model, micro_batch):
                if micro_batch.index == at:
                    body(accelerator, model, micro_batch)
                else:
                    accelerator.backward(micro_batch.scaled(loss_of(model, micro_batch)))

    with pytest.raises(UserError, match=rf"^micro-batch {at + 1} of 3 {said}.*accelerator\.backward"):
        run()


def test_a_loss_that_is_no_single_number_is_refused_before_the_backward(accelerator: Accelerator) -> None:
    micro_batch = next(execution_of().micro_batches(2))
    with pytest.raises(UserError, match=r"a loss of the shape \(2,\): has to be a single number.*`loss.sum\(\)`"):
        micro_batch.scaled(torch.ones(2))


def test_the_noted_loss_is_what_it_was_told_where_another_is_differentiated(accelerator: Accelerator) -> None:
    model, execution = make_model(TASK), execution_of()
    for micro_batch in execution.micro_batches(2):
        with accumulate(accelerator, model, micro_batch):
            noted = torch.tensor(float(len(micro_batch.examples)))
            accelerator.backward(micro_batch.scaled(loss_of(model, micro_batch), noted=noted))
    assert float(execution.loss_sum()) == 5.0


def settings_of(accelerator: Accelerator, model: Any) -> tuple[Any, ...]:
    kwargs = dict(accelerator.gradient_state.plugin_kwargs)
    return kwargs, accelerator.gradient_accumulation_steps, accelerator.step, model.require_forward_param_sync


@pytest.fixture
def wrapped(accelerator: Accelerator, tmp_path: Any) -> Any:
    """A model in DistributedDataParallel, in a group of this one process."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    yield DistributedDataParallel(make_model(TASK))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("end", ["its end", "a break", "an error", "a misuse", "memory that runs out once"])
def test_settings_of_accelerate_and_of_the_wrapper_are_given_back(
    accelerator: Accelerator, wrapped: DistributedDataParallel, end: str
) -> None:
    accelerator.gradient_accumulation_steps = 7
    accelerator.step = 3
    before = settings_of(accelerator, wrapped)
    failures = iter([True])

    def run() -> None:
        for micro_batch in execution_of().micro_batches(2):
            with accumulate(accelerator, wrapped, micro_batch):
                assert accelerator.gradient_accumulation_steps == micro_batch.count
                assert micro_batch.index or not wrapped.require_forward_param_sync  # the forward sets it too
                loss = loss_of(wrapped, micro_batch)
                if micro_batch.index == 1 and end == "an error":
                    raise ZeroDivisionError
                if micro_batch.index == 1 and end == "memory that runs out once" and next(failures, False):
                    raise torch.OutOfMemoryError("out of memory: made up")
                if end != "a misuse":
                    accelerator.backward(micro_batch.scaled(loss))
            if end == "a break":
                break

    expected = {"an error": ZeroDivisionError, "a misuse": UserError}.get(end)
    if expected is None:
        run()
        assert accelerator.sync_gradients == (end != "a break")  # by which a prepared optimizer steps
    else:
        with pytest.raises(expected):
            run()
    assert settings_of(accelerator, wrapped) == before


def test_an_out_of_memory_ends_the_body_early_and_says_so_in_the_first_line() -> None:
    assert "out-of-memory inside ends the body early" in (accumulate.__doc__ or "").splitlines()[0]


def test_an_execution_is_done_once_it_went_through(accelerator: Accelerator) -> None:
    model, execution = make_model(TASK), execution_of()
    for micro_batch in execution.micro_batches(2):
        assert not execution.is_done
        with accumulate(accelerator, model, micro_batch):
            accelerator.backward(micro_batch.scaled(loss_of(model, micro_batch)))
    assert execution.is_done


def examples_of(lengths: list[int]) -> list[Example]:
    return [Example(f"{i}", length, 1.0, {}) for i, length in enumerate(lengths)]


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=30),
    size=st.integers(1, 9),
)
def test_scales_undo_the_division_of_accelerate(lengths: list[int], size: int) -> None:
    examples = examples_of(lengths)
    window = make_window(examples, examples[0], whole=examples * 2)
    micro_batches = list(window.micro_batches(size))
    for index, micro_batch in enumerate(micro_batches):
        assert (micro_batch.index, micro_batch.count) == (index, len(micro_batches))
        seen = micro_batch.scale / micro_batch.count  # accelerate's backward
        assert seen == pytest.approx(1 / window.window.num_items, rel=1e-15)
    padded = sum(len(m.examples) * m.examples[0].length for m in micro_batches)
    assert (window.num_micro_batches, window.num_padded_tokens) == (len(micro_batches), padded)
    assert len({m.seed for m in micro_batches}) == len(micro_batches)


def test_a_rank_without_examples_runs_its_stand_in_with_weight_zero() -> None:
    whole = examples_of([3, 4])
    window = make_window([], whole[0], rank=1, whole=whole)
    (micro_batch,) = window.micro_batches(8)
    assert (micro_batch.examples, micro_batch.scale) == ((whole[0],), 0.0)
    assert (micro_batch.index, micro_batch.count) == (0, 1)
    assert (window.num_micro_batches, window.num_padded_tokens) == (0, 0)
    window.note(torch.tensor(7.0))
    assert window.loss_sum() == 0.0


def test_random_numbers_differ_by_rank_and_step() -> None:
    whole = examples_of([3, 4])
    seeds = set()
    for rank in range(3):
        window = make_window(whole, whole[0], rank=rank, whole=whole)
        seeds |= {m.seed for m in window.micro_batches(1)}
    assert len(seeds) == 6
