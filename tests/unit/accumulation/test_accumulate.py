"""One micro-batch in accelerate's context: its count, its random numbers, what is summed and what is dropped."""

import pytest
import torch
from accelerate import Accelerator
from window_cases import (
    TASKS,
    batch,
    make_examples,
    make_model,
    make_window,
)

from hf_accum import UserError, accumulate


def test_a_call_of_accelerators_own_accumulate_in_between_is_noticed(accelerator: Accelerator) -> None:
    task = TASKS["plain"]
    model = make_model(task)
    examples = make_examples(task, [3, 3])
    micro_batches = make_window(examples, examples[0], whole=examples).micro_batches(1)
    with (
        pytest.raises(RuntimeError, match="micro-batch 1 of 2 did not match"),
        accumulate(accelerator, model, next(micro_batches)),
        accelerator.accumulate(model),
    ):
        pass


def test_a_model_of_which_nothing_is_trained_is_refused(accelerator: Accelerator) -> None:
    task = TASKS["plain"]
    model = make_model(task).requires_grad_(False)
    examples = make_examples(task, [3, 3])
    micro_batches = make_window(examples, examples[0], whole=examples).micro_batches(1)
    with (
        pytest.raises(UserError, match=rf"given {type(model).__name__}, of which no parameter is to be trained"),
        accumulate(accelerator, model, next(micro_batches)),
    ):
        pass


def test_dropout_is_the_same_when_a_micro_batch_is_repeated(accelerator: Accelerator) -> None:
    task = TASKS["plain"]
    model = make_model(task)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    examples = make_examples(task, [3, 4, 5])

    def logits_of_each() -> list[torch.Tensor]:
        found = []
        for micro_batch in make_window(examples, examples[0], whole=examples).micro_batches(2):
            with accumulate(accelerator, model, micro_batch):
                found.append(model(**batch(micro_batch.examples)[0]).logits)
                accelerator.backward(micro_batch.scaled(found[-1].sum()))
        model.zero_grad()
        return found

    first, second = logits_of_each(), logits_of_each()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0][:1], first[1])
