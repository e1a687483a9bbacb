"""A window's execution: a micro-batch that is used in a wrong way is an error, and settings are given back."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from dry_runs import dry_run
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from window_cases import TASKS, batch, make_examples, make_model, make_window, unsplit_gradient

from hf_accum.accumulation.accumulate import accumulate
from hf_accum.accumulation.example import Example
from hf_accum.accumulation.execution import MicroBatch, WindowExecution
from hf_accum.accumulation.nonfinite import NonFiniteCheck
from hf_accum.distributed.ranks import OneRank
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


def with_two_backwards(accelerator: Accelerator, model: nn.Module, micro_batch: MicroBatch) -> None:
    scaled = micro_batch.scaled(loss_of(model, micro_batch))
    accelerator.backward(scaled, retain_graph=True)
    accelerator.backward(scaled)


def with_a_backward_that_fails_unheard(accelerator: Accelerator, model: nn.Module, micro_batch: MicroBatch) -> None:
    def fail(_: Tensor) -> None:
        raise torch.OutOfMemoryError("out of memory: made up")

    handle = next(model.parameters()).register_hook(fail)  # of the embeddings: nearly all gradients are there by then
    with contextlib.suppress(torch.OutOfMemoryError):
        accelerator.backward(micro_batch.scaled(loss_of(model, micro_batch)))
    handle.remove()


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
        (with_two_backwards, "ran 2 backwards"),
        (with_a_backward_that_fails_unheard, "ended without the backward of its scaled loss"),
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


def test_a_backward_that_accelerate_does_not_divide_is_an_error(accelerator: Accelerator) -> None:
    model = make_model(TASK)

    def run(num_examples: int, factor: float) -> None:
        for micro_batch in execution_of(num_examples).micro_batches(2):
            with accumulate(accelerator, model, micro_batch):
                (micro_batch.scaled(loss_of(model, micro_batch)) * factor).backward()
        model.zero_grad()

    run(2, 1.0)  # one micro-batch: there is nothing to divide
    run(5, 1 / 3)
    with pytest.raises(UserError, match=r"micro-batch 1 of 3: .* factor 1, .*accelerate's is 0\.3333"):
        run(5, 1.0)


def test_a_loss_of_one_number_in_any_shape_is_one(accelerator: Accelerator) -> None:
    model = make_model(TASK)
    gradients = []
    for shape in ((), (1,), (1, 1)):
        for micro_batch in execution_of().micro_batches(2):
            with accumulate(accelerator, model, micro_batch):
                accelerator.backward(micro_batch.scaled(loss_of(model, micro_batch).reshape(shape)))
        gradients.append([p.grad for p in model.parameters()])
        model.zero_grad()
    for others in gradients[1:]:
        torch.testing.assert_close(others, gradients[0], rtol=0, atol=0)


@pytest.mark.parametrize("factor", [1.0, 0.5, torch.inf])
def test_the_scaler_of_fp16_hides_no_factor(accelerator: Accelerator, factor: float) -> None:
    """One that overflows is its own affair."""
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    model = make_model(TASK)
    try:
        with pytest.raises(UserError, match="micro-batch 1 of 3") if factor == 0.5 else contextlib.nullcontext():
            for micro_batch in execution_of().micro_batches(2):
                with accumulate(accelerator, model, micro_batch):
                    accelerator.backward(micro_batch.scaled(loss_of(model, micro_batch)) * factor)
    finally:
        accelerator.scaler = None


@pytest.mark.parametrize("has_scaler", [False, True])
def test_two_windows_at_a_time_are_an_error(accelerator: Accelerator, has_scaler: bool) -> None:
    """As of two models that take turns; accelerate has one count for both."""
    accelerator.scaler = torch.amp.GradScaler("cpu") if has_scaler else None
    models = [make_model(TASK) for _ in range(2)]

    def take_turns() -> None:
        for both in zip(*(execution_of(4).micro_batches(2) for _ in models), strict=True):
            for model, micro_batch in zip(models, both, strict=True):
                with accumulate(accelerator, model, micro_batch):
                    accelerator.backward(micro_batch.scaled(loss_of(model, micro_batch)))

    try:
        with pytest.raises(UserError, match="one window to its end before another begins"):
            take_turns()
    finally:
        accelerator.scaler = None


def run_through(accelerator: Accelerator, model: nn.Module, execution: WindowExecution) -> None:
    for micro_batch in execution.micro_batches(2):
        with accumulate(accelerator, model, micro_batch):
            accelerator.backward(micro_batch.scaled(loss_of(model, micro_batch)))


def test_micro_batches_that_are_listed_first_are_an_error(accelerator: Accelerator) -> None:
    with pytest.raises(UserError, match="micro-batch 1 of 3 was not run to the end of `accumulate`"):
        list(execution_of().micro_batches(2))


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_micro_batch_that_is_left_out_is_an_error(accelerator: Accelerator, at: int) -> None:
    model, execution = make_model(TASK), execution_of()

    def run() -> None:
        for micro_batch in execution.micro_batches(2):
            if micro_batch.index != at:
                with accumulate(accelerator, model, micro_batch):
                    accelerator.backward(micro_batch.scaled(loss_of(model, micro_batch)))

    with pytest.raises(UserError, match=f"micro-batch {at + 1} of 3 was not run to the end"):
        run()
    assert all(p.grad is None for p in model.parameters())
    assert not execution.is_done


@pytest.mark.parametrize("error", [KeyError("made up"), UserError("made up")])
def test_an_error_that_the_loop_catches_is_an_error_all_the_same(accelerator: Accelerator, error: Exception) -> None:
    model = make_model(TASK)

    def run() -> None:
        for micro_batch in execution_of().micro_batches(2):
            with contextlib.suppress(KeyError, UserError), accumulate(accelerator, model, micro_batch):
                loss = loss_of(model, micro_batch)
                if micro_batch.index == 1:
                    raise error
                accelerator.backward(micro_batch.scaled(loss))

    with pytest.raises(UserError, match="micro-batch 2 of 3 was not run to the end"):
        run()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("prepared", [False, True])
def test_after_a_break_the_next_window_has_its_own_gradient(accelerator: Accelerator, prepared: bool) -> None:
    model = make_model(TASK)
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=1.0)
    if prepared:
        optimizer = accelerator.prepare(optimizer)
    before = [p.clone() for p in model.parameters()]
    execution = execution_of()
    for micro_batch in execution.micro_batches(2):
        with accumulate(accelerator, model, micro_batch):
            accelerator.backward(micro_batch.scaled(loss_of(model, micro_batch)))
        if micro_batch.index == 1:
            break
    optimizer.step()  # of nothing
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    nonfinite = NonFiniteCheck(OneRank(), Path("nowhere"), print, max_skips=0)
    with pytest.raises(UserError, match="window 1 did not go through"):
        nonfinite.accepts(execution, 1.0)
    examples = execution.window.examples
    expected, _ = unsplit_gradient(model, TASK, list(examples))
    run_through(accelerator, model, execution_of())
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-12, atol=1e-12)


def test_a_window_is_run_once(accelerator: Accelerator) -> None:
    model, execution = make_model(TASK), execution_of()
    run_through(accelerator, model, execution)
    with pytest.raises(UserError, match="window 1 was run already"):
        run_through(accelerator, model, execution)


@pytest.mark.parametrize("capacity", [2.0, "2", None, {"capacity": 2}])
def test_a_capacity_that_is_none_is_refused(capacity: Any) -> None:
    with pytest.raises(UserError, match=r"a capacity of .*: has to be the most examples"):
        next(execution_of().micro_batches(capacity))


def test_a_number_of_numpy_is_a_capacity() -> None:
    assert len(next(execution_of().micro_batches(np.int64(2))).examples) == 2  # type: ignore[arg-type]


def test_gradients_left_over_from_before_a_window_are_refused(accelerator: Accelerator) -> None:
    model = make_model(TASK)
    run_through(accelerator, model, execution_of())
    with pytest.raises(UserError, match=r"have gradients from before this window.*zero_grad"):
        run_through(accelerator, model, execution_of())
    model.zero_grad(set_to_none=False)  # zeros are none
    run_through(accelerator, model, execution_of())


def test_in_a_no_grad_pass_no_loss_is_noted(accelerator: Accelerator) -> None:
    model, execution = make_model(TASK), execution_of()
    losses = []
    for micro_batch in execution.micro_batches(2, no_grad_pass=OneRank()):
        with accumulate(accelerator, model, micro_batch):
            loss = micro_batch.scaled(summed := loss_of(model, micro_batch))
            if not micro_batch.is_no_grad_pass:
                losses.append(summed.item())
                accelerator.backward(loss)
    assert float(execution.loss_sum()) == pytest.approx(sum(losses), rel=1e-12)


def test_a_loss_that_is_no_tensor_is_refused() -> None:
    micro_batch = next(execution_of().micro_batches(2))
    with pytest.raises(UserError, match="a loss of the type float: has to be a tensor"):
        micro_batch.scaled(3.0)  # type: ignore[arg-type]


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
        assert accelerator.sync_gradients  # by which a prepared optimizer steps
    else:
        with pytest.raises(expected):
            run()
    assert settings_of(accelerator, wrapped) == before


def test_a_static_graph_of_the_wrapper_is_refused(accelerator: Accelerator, wrapped: DistributedDataParallel) -> None:
    """Of which torch fails an assertion of its own, in the first backward."""
    with pytest.raises(UserError, match="with `static_graph`"):
        run_through(accelerator, DistributedDataParallel(wrapped.module, static_graph=True), execution_of())


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
    micro_batches = list(dry_run(window, size))
    for index, micro_batch in enumerate(micro_batches):
        assert (micro_batch.index, micro_batch.count) == (index, len(micro_batches))
        seen = micro_batch.scale / micro_batch.count  # accelerate's backward
        assert seen == pytest.approx(1 / window.window.num_items, rel=1e-15)
    padded = sum(len(m.examples) * m.examples[0].length for m in micro_batches)
    assert (window.num_micro_batches, window.num_padded_tokens) == (len(micro_batches), padded)
    assert len({m.seed for m in micro_batches}) == len(micro_batches)


def test_a_rank_without_examples_runs_its_dummy_with_weight_zero() -> None:
    whole = examples_of([3, 4])
    window = make_window([], whole[0], rank=1, whole=whole)
    (micro_batch,) = dry_run(window, 8)
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
        seeds |= {m.seed for m in dry_run(window, 1)}
    assert len(seeds) == 6
