"""Memory that runs out anywhere in a window changes no gradient, no step and no figure: float64, one unsplit batch.

Every test with a made-up error compares with the gradient of one batch in plain torch, and the weights with those
of plain torch's own clipping and AdamW.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from failing import Failing, out_of_memory
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import get_scheduler
from window_cases import (
    TASKS,
    Task,
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
from hf_accum.accumulation.execution import MicroBatch, WindowExecution
from hf_accum.config.optimization import OptimizationFlags
from hf_accum.device.live_bytes import LiveBytes
from hf_accum.errors import OutOfMemory
from hf_accum.models.optimizer import build_optimizer

MAX_NORM = 0.01  # below the gradient's norm, so that clipping does something
LEARNING_RATE = 0.01
LENGTHS = (7, 5, 5, 3, 3)
CUDNN = "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"


class Checkpointed(nn.Module):
    """A tiny model of tokens whose blocks are computed again in the backward."""

    def __init__(self, width: int = 8, num_blocks: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0.0), nn.Linear(4 * width, width))
            for _ in range(num_blocks)
        )
        self.head = nn.Linear(width, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        hidden = self.embedding(input_ids)
        for block in self.blocks:
            hidden = hidden + checkpoint(block, hidden, use_reentrant=False)
        mask = attention_mask.unsqueeze(-1)
        return SimpleNamespace(logits=self.head((hidden * mask).sum(1) / mask.sum(1)))


def make_shallow(task: Task, seed: int = 0) -> nn.Module:
    """One layer, which has all the operations that there are."""
    model: Any = make_model(task, seed)
    model.bert.encoder.layer = model.bert.encoder.layer[:1]
    return model


def make_checkpointed(task: Task, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Checkpointed().double().train()


@dataclass
class Outcome:
    """What a window left behind."""

    window: WindowExecution
    gradients: dict[str, Tensor]
    """Before they were clipped."""
    weights: dict[str, Tensor]
    num_steps: set[int]
    """The optimizer's own count, over all parameters, and the scheduler's."""
    attempts: list[list[MicroBatch]] = field(default_factory=list)


def train_window(
    accelerator: Accelerator,
    model: nn.Module,
    task: Task,
    examples: Sequence[Example],
    capacity: WorkingCapacity | int,
    failing: Failing,
) -> Outcome:
    """A window and its step, as in a recipe."""
    optimizer = build_optimizer(model, OptimizationFlags(learning_rate=LEARNING_RATE, weight_decay=0.1))
    scheduler = get_scheduler("linear", optimizer, 0, 10)
    prepared = accelerator.prepare_optimizer(optimizer)
    window = make_window(examples, examples[0], whole=examples)
    attempts: list[list[MicroBatch]] = []
    for micro_batch in window.micro_batches(capacity):
        if micro_batch.index == 0:
            attempts.append([])
        attempts[-1].append(micro_batch)
        with accumulate(accelerator, model, micro_batch), failing.during(micro_batch):
            inputs, labels = batch(micro_batch.examples)
            loss = task.objective(model(**inputs).logits, labels)
            accelerator.backward(micro_batch.scaled(loss))
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    accelerator.clip_grad_norm_(model.parameters(), MAX_NORM)
    prepared.step()
    assert not accelerator.optimizer_step_was_skipped
    scheduler.step()
    prepared.zero_grad()
    num_steps = {int(state["step"]) for state in optimizer.state.values()} | {scheduler.last_epoch}
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    return Outcome(window, gradients, weights, num_steps, attempts)


@dataclass
class Case:
    """A model, its window, and what plain torch makes of it."""

    task: Task
    model: nn.Module
    examples: list[Example]
    gradient: dict[str, Tensor]
    loss: float
    weights_before: dict[str, Tensor]
    weights_after: dict[str, Tensor]

    def reset(self) -> None:
        self.model.load_state_dict(self.weights_before)
        self.model.zero_grad()

    def check(self, outcome: Outcome) -> None:
        """The gradient, the step and the figures are those of the whole window at once."""
        assert outcome.gradients.keys() == self.gradient.keys()
        largest = max(float(g.abs().max()) for g in self.gradient.values())
        for name, expected in self.gradient.items():
            assert float((outcome.gradients[name] - expected).abs().max()) <= 1e-12 * largest
        for name, expected in self.weights_after.items():
            assert float((outcome.weights[name] - expected).abs().max()) <= 1e-12
        assert outcome.num_steps == {1}
        window, last = outcome.window, outcome.attempts[-1]
        assert float(window.loss_sum()) / window.window.num_items == pytest.approx(self.loss, rel=1e-12)
        assert window.num_oom_replays == len(outcome.attempts) - 1
        assert sorted(e.id for m in last for e in m.examples) == sorted(e.id for e in self.examples)
        assert [m.index for m in last] == list(range(len(last)))
        assert {m.count for m in last} == {len(last)}
        assert window.num_micro_batches == len(last)
        lengths = [[e.length for e in m.examples] for m in last]
        assert window.num_padded_tokens == sum(len(some) * max(some) for some in lengths)
        failed = [attempt[-1] for attempt in outcome.attempts[:-1]]
        for number, micro_batch in enumerate(failed):
            allowed = max(1, len(micro_batch.examples) // 2)
            for later in (m for attempt in outcome.attempts[number + 1 :] for m in attempt):
                assert later.length < micro_batch.length or len(later.examples) <= allowed


def make_case(name: str, lengths: Sequence[int] = LENGTHS, make: Callable[[Task], nn.Module] = make_model) -> Case:
    task = TASKS[name]
    model = make(task)
    examples = make_examples(task, lengths, seed=1)
    gradient, loss = unsplit_gradient(model, task, examples)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    optimizer = build_optimizer(model, OptimizationFlags(learning_rate=LEARNING_RATE, weight_decay=0.1))
    for key, parameter in model.named_parameters():
        parameter.grad = gradient[key].clone()
    assert torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM) > MAX_NORM
    optimizer.step()
    after = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    case = Case(task, model, examples, gradient, loss, before, after)
    case.reset()
    return case


# A failure somewhere


@pytest.mark.parametrize(
    ("name", "make", "lengths", "sizes", "fewest", "every"),
    [
        pytest.param("weights and smoothing", make_shallow, (7, 5, 3), [2, 1], 400, 7, id="sequences, some"),
        pytest.param(
            *("weights and smoothing", make_shallow, (7, 5, 3), [2, 1], 400, 1),
            id="sequences",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *("tokens, weights and smoothing", make_shallow, (7, 5, 3), [2, 1], 400, 1),
            id="tokens",
            marks=pytest.mark.by_hand,
        ),
        pytest.param(
            *("weights and smoothing", make_checkpointed, LENGTHS, [2, 2, 1], 400, 1),
            id="checkpointed",
            marks=pytest.mark.by_hand,
        ),
    ],
)
def test_memory_that_runs_out_at_any_operation_leaves_the_step_as_it_would_have_been(
    accelerator: Accelerator,
    name: str,
    make: Callable[[Task], nn.Module],
    lengths: Sequence[int],
    sizes: list[int],
    fewest: int,
    every: int,
) -> None:
    case = make_case(name, lengths, make)
    clean = Failing()
    case.check(train_window(accelerator, case.model, case.task, case.examples, 2, clean))
    assert clean.sizes == sizes
    assert clean.num_operations >= fewest

    failed_in: set[int] = set()
    for at in range(1, clean.num_operations + 1, every):
        case.reset()
        failing = Failing(at)
        outcome = train_window(accelerator, case.model, case.task, case.examples, 2, failing)
        assert failing.num_failures == 1
        assert outcome.window.num_oom_replays == 1
        case.check(outcome)
        failed = outcome.attempts[0][-1]
        failed_in.add(failed.index)
        assert f"{len(failed.examples)} examples of {failed.length} tokens" in outcome.window.last_replay
        assert "OutOfMemoryError: out of memory: made up" in outcome.window.last_replay
    assert failed_in == set(range(len(sizes)))


def test_the_windows_after_are_cut_smaller_too_and_shorter_ones_as_before(accelerator: Accelerator) -> None:
    case = make_case("plain", [10] * 4)
    capacity = WorkingCapacity(Capacity(4))
    train_window(accelerator, case.model, case.task, case.examples, capacity, Failing(at=100))
    for length, expected in ((12, [2, 2]), (10, [2, 2]), (5, [4]), (2, [4])):
        examples = make_examples(case.task, [length] * 4)
        after = Failing()
        outcome = train_window(accelerator, case.model, case.task, examples, capacity, after)
        assert after.sizes == expected
        assert outcome.window.num_oom_replays == 0
    assert capacity.tuned == Capacity(4)


@pytest.mark.parametrize("make", [make_shallow, make_checkpointed])
def test_a_single_example_that_fails_once_is_repeated_with_the_same_dropout(
    accelerator: Accelerator, make: Callable[[Task], nn.Module]
) -> None:
    """The same cut: bit by bit what it would have been."""
    case = make_case("plain", [5, 3], make)
    for module in case.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    counting = Failing()
    clean = train_window(accelerator, case.model, case.task, case.examples, 1, counting)
    assert any(not torch.equal(clean.gradients[name], case.gradient[name]) for name in case.gradient)
    for at in range(1, counting.num_operations + 1, 3):
        case.reset()
        torch.manual_seed(at)  # whatever was drawn before does not matter
        outcome = train_window(accelerator, case.model, case.task, case.examples, 1, Failing(at))
        assert outcome.window.num_oom_replays == 1
        assert [len(m.examples) for m in outcome.attempts[-1]] == [1, 1]
        assert all(torch.equal(outcome.gradients[name], clean.gradients[name]) for name in clean.gradients)
        assert all(torch.equal(outcome.weights[name], clean.weights[name]) for name in clean.weights)
        assert float(outcome.window.loss_sum()) == float(clean.window.loss_sum())
        assert outcome.num_steps == {1}


class Normalised(nn.Module):
    """Batch statistics over the examples of a micro-batch."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(50, 8, padding_idx=0)
        self.norm = nn.BatchNorm1d(8)
        self.frozen = nn.BatchNorm1d(8).eval()
        self.head = nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return SimpleNamespace(logits=self.head(self.frozen(self.norm(self.embedding(input_ids)))))


def test_running_statistics_see_a_replayed_window_once(accelerator: Accelerator) -> None:
    """As if it had been cut small enough from the start."""
    torch.manual_seed(0)
    model = Normalised().double()
    task = TASKS["plain"]
    examples = make_examples(task, [6] * 8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train_window(accelerator, model, task, examples, 2, Failing())
    after = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert after["norm.num_batches_tracked"] == 4
    counting = Failing()
    model.load_state_dict(before)
    train_window(accelerator, model, task, examples, 4, counting)
    for at in range(1, counting.num_operations + 1, 3):
        model.load_state_dict(before)
        outcome = train_window(accelerator, model, task, examples, 4, Failing(at))
        assert outcome.window.num_oom_replays == 1
        assert [len(m.examples) for m in outcome.attempts[-1]] == [2] * 4
        assert all(torch.equal(tensor, after[name]) for name, tensor in model.state_dict().items())


def test_a_rank_without_examples_leaves_running_statistics_alone(accelerator: Accelerator) -> None:
    model = Normalised().double().eval()
    model.norm.train()
    task = TASKS["plain"]
    model(**batch(make_examples(task, [6] * 4))[0])  # there are some
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    model.norm.momentum = 0.5
    examples = make_examples(task, [6] * 2)

    window = make_window([], examples[0], whole=examples)
    for micro_batch in window.micro_batches(2):
        with accumulate(accelerator, model, micro_batch):
            inputs, labels = batch([*micro_batch.examples, examples[1]])  # one row has no statistics
            loss = task.objective(model(**inputs).logits, labels)
            accelerator.backward(micro_batch.scaled(loss))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_buffers())
    assert all(parameter.grad is None for parameter in model.parameters())


# A failure for as long as there are too many examples


@pytest.mark.parametrize("at", [1, 90, 300])  # in the forward, and in the backward
@pytest.mark.parametrize(("most", "num_replays"), [(1, 3), (2, 2), (3, 2), (4, 1), (7, 1), (8, 0)])
def test_a_window_is_replayed_until_its_micro_batches_fit(
    accelerator: Accelerator, most: int, num_replays: int, at: int
) -> None:
    """From 8 by halves."""
    case = make_case("weights and smoothing", [6] * 17)
    failing = Failing(at, above=most)
    outcome = train_window(accelerator, case.model, case.task, case.examples, 8, failing)
    case.check(outcome)
    assert outcome.window.num_oom_replays == failing.num_failures == num_replays
    size = 8 >> num_replays
    assert [len(m.examples) for m in outcome.attempts[-1]] == [size] * (17 // size) + [1] * (17 % size)


@pytest.mark.parametrize("most", [1, 2, 3, 5])
@pytest.mark.parametrize("name", ["multi-label", "regression", "tokens"])
def test_a_window_of_many_lengths_is_replayed_until_its_micro_batches_fit(
    accelerator: Accelerator, name: str, most: int
) -> None:
    case = make_case(name, [2 + (5 * i) % 23 for i in range(19)])
    outcome = train_window(accelerator, case.model, case.task, case.examples, 8, Failing(200, above=most))
    case.check(outcome)
    assert outcome.window.num_oom_replays >= 1
    assert all(len(m.examples) <= most for m in outcome.attempts[-1])


@pytest.mark.parametrize("at", [1, 300])
def test_a_single_example_that_never_fits_ends_the_run_and_says_what_would(accelerator: Accelerator, at: int) -> None:
    case = make_case("plain")
    failing = Failing(at, above=0)
    with pytest.raises(OutOfMemory) as raised:
        train_window(accelerator, case.model, case.task, case.examples, 4, failing)
    assert failing.sizes == [4, 2, 1, 1]  # the single one twice
    message = str(raised.value)
    assert message.startswith(
        "a single example of 7 tokens does not fit into memory (OutOfMemoryError: out of memory"
    )
    assert message.endswith("gradient checkpointing, smaller examples, or another model need less")


# Other errors


@pytest.mark.parametrize("at", [1, 150, 700])
def test_an_error_that_only_might_be_of_memory_is_tried_once_more(accelerator: Accelerator, at: int) -> None:
    case = make_case("plain")
    outcome = train_window(
        accelerator, case.model, case.task, case.examples, 2, Failing(at, error=lambda: RuntimeError(CUDNN))
    )
    case.check(outcome)
    assert outcome.window.num_oom_replays == 1
    assert CUDNN in outcome.window.last_replay


@pytest.mark.parametrize("size", [1, 4])
def test_an_error_that_only_might_be_of_memory_is_raised_when_it_comes_again(
    accelerator: Accelerator, size: int
) -> None:
    case = make_case("plain")
    failing = Failing(100, above=0, error=lambda: RuntimeError(CUDNN))
    for _ in range(2):  # every window has its one more try
        with pytest.raises(RuntimeError, match=CUDNN):
            train_window(accelerator, case.model, case.task, case.examples, size, failing)
    assert failing.num_failures == 4


def test_an_error_that_only_might_be_of_memory_is_raised_also_if_memory_ran_out_in_between(
    accelerator: Accelerator,
) -> None:
    case = make_case("plain")
    errors = iter([RuntimeError(CUDNN), out_of_memory(), RuntimeError(CUDNN)])
    failing = Failing(100, above=0, error=lambda: next(errors))
    with pytest.raises(RuntimeError, match=CUDNN):
        train_window(accelerator, case.model, case.task, case.examples, 4, failing)
    assert failing.num_failures == 3


@pytest.mark.parametrize("at", [1, 300, 900])  # in the first forward, its backward, a later micro-batch
@pytest.mark.parametrize(
    "error",
    [
        ValueError("field 'label': out of memory"),
        KeyError("out of memory"),
        KeyboardInterrupt(),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: device-side assert triggered; out of memory"),
        torch.OutOfMemoryError("unspecified launch failure"),
    ],
    ids=lambda error: f"{type(error).__name__} {error}",
)
def test_an_error_that_is_not_of_memory_is_raised_at_once(
    accelerator: Accelerator, error: BaseException, at: int
) -> None:
    case = make_case("plain")
    made: Any = lambda: error  # noqa: E731
    failing = Failing(at, error=made)
    with pytest.raises(type(error)) as raised:
        train_window(accelerator, case.model, case.task, case.examples, 2, failing)
    assert raised.value is error
    assert failing.num_failures == 1
    assert failing.num_operations == at


# A device with too little memory


def run_on_small_device(
    accelerator: Accelerator, model: nn.Module, task: Task, examples: Sequence[Example], size: int, budget: int | None
) -> tuple[LiveBytes, WindowExecution]:
    """A loop whose own variables are all that a user might name."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # what lives all through a window
    window = make_window(examples, examples[0], whole=examples)
    with LiveBytes(budget, held=[*model.parameters(), *model.buffers()]) as live:
        for micro_batch in window.micro_batches(size):
            with accumulate(accelerator, model, micro_batch):
                inputs, labels = batch(micro_batch.examples)
                outputs = model(**inputs)
                logits = outputs.logits
                loss = task.objective(logits, labels)
                scaled = micro_batch.scaled(loss)
                accelerator.backward(scaled)
    return live, window


def run_on_small_device_without_names(
    accelerator: Accelerator, model: nn.Module, task: Task, examples: Sequence[Example], size: int, budget: int | None
) -> tuple[LiveBytes, WindowExecution]:
    """A loop that keeps nothing."""

    def forward(micro_batch: MicroBatch) -> Tensor:
        inputs, labels = batch(micro_batch.examples)
        return task.objective(model(**inputs).logits, labels)

    window = make_window(examples, examples[0], whole=examples)
    with LiveBytes(budget, held=[*model.parameters(), *model.buffers()]) as live:
        for micro_batch in window.micro_batches(size):
            with accumulate(accelerator, model, micro_batch):
                accelerator.backward(micro_batch.scaled(forward(micro_batch)))
    return live, window


@pytest.mark.parametrize("run", [run_on_small_device, run_on_small_device_without_names], ids=["names", "no names"])
@pytest.mark.parametrize(
    ("name", "make"),
    [("plain", make_model), ("tokens", make_model), ("regression", make_model), ("plain", make_checkpointed)],
    ids=["sequences", "tokens", "regression", "checkpointed"],
)
def test_a_window_too_large_for_the_device_ends_at_the_size_that_fits_it(
    accelerator: Accelerator, name: str, make: Callable[[Task], nn.Module], run: Any
) -> None:
    """If anything of a failed attempt were still held, the size whose own peak is the budget would fail too."""
    task = TASKS[name]
    model = make(task)
    examples = make_examples(task, [30] * 8)
    reference, _ = unsplit_gradient(model, task, examples)
    peaks = {}
    for size in (8, 4, 2, 1):
        peaks[size] = run(accelerator, model, task, examples, size, None)[0].peak_bytes
        model.zero_grad()
    for size in (4, 2, 1):
        # Logits, labels and inputs of the attempt before may be there still: a few hundred bytes for an example.
        slack = 8 * 30 * 8 * 4
        assert peaks[2 * size] - peaks[size] > 2 * slack
        for budget in torch.linspace(peaks[size] + slack, peaks[2 * size] - 1, 7).long().tolist():
            live, window = run(accelerator, model, task, examples, 8, budget)
            assert largest_relative_difference(model, reference) <= 1e-12
            assert live.peak_bytes <= budget
            assert window.num_micro_batches == 8 // size, f"budget {budget} of {peaks}"
            model.zero_grad()
