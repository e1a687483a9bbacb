"""The window's gradient under fp16's loss scaling, with a real GradScaler, and under bf16 autocast."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from window_cases import TASKS, batch, make_examples, make_model, make_window

from hf_accum import accumulate
from hf_accum.accumulation.nonfinite import NonFiniteCheck
from hf_accum.config.optimization import OptimizationFlags
from hf_accum.distributed.ranks import OneRank
from hf_accum.models.optimizer import build_optimizer

TASK = TASKS["weights and smoothing"]


@pytest.fixture
def fp16_accelerator(accelerator: Accelerator) -> Iterator[Accelerator]:
    """As accelerate sets itself up for fp16 on a GPU, but for the autocast, which CPUs have not."""
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=10_000)
    accelerator.native_amp = True
    AcceleratorState._shared_state["_mixed_precision"] = "fp16"
    yield accelerator
    accelerator.native_amp = False


def run_window(accelerator: Accelerator, model: nn.Module, micro_batch_size: int, overflow: bool = False) -> None:
    examples = make_examples(TASK, [3, 9, 4, 12, 5, 7, 2])
    for micro_batch in make_window(examples, examples[0], whole=examples).micro_batches(micro_batch_size):
        with accumulate(accelerator, model, micro_batch):
            inputs, labels = batch(micro_batch.examples)
            loss = TASK.objective(model(**inputs).logits, labels)
            if overflow and micro_batch.index == 1:
                loss = loss * torch.inf
            accelerator.backward(micro_batch.scaled(loss))


def gradients(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_a_scaled_window_unscales_to_its_gradient_and_steps_once(fp16_accelerator: Accelerator) -> None:
    model = make_model(TASK).float()
    inner = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer = fp16_accelerator.prepare_optimizer(inner)
    assert getattr(optimizer, "scaler", None) is fp16_accelerator.scaler
    before = nn.utils.parameters_to_vector(model.parameters()).clone().detach()
    reference = make_model(TASK)
    run_window(Accelerator(cpu=True), reference, 7)  # float64, in one piece

    run_window(fp16_accelerator, model, 2)
    norm = fp16_accelerator.clip_grad_norm_(model.parameters(), 1e9)
    expected = gradients(reference).float()
    assert torch.allclose(gradients(model), expected, atol=1e-6 * float(expected.abs().max()))
    assert norm is not None
    assert float(norm) == pytest.approx(float(expected.norm()), rel=1e-5)
    optimizer.step()
    after = nn.utils.parameters_to_vector(model.parameters()).detach()
    assert torch.allclose(before - after, expected, atol=1e-6)
    assert not fp16_accelerator.optimizer_step_was_skipped


def test_a_window_that_overflows_anywhere_is_skipped_whole(fp16_accelerator: Accelerator) -> None:
    model = make_model(TASK).float()
    optimizer = fp16_accelerator.prepare_optimizer(torch.optim.SGD(model.parameters(), lr=1.0))
    before = nn.utils.parameters_to_vector(model.parameters()).clone().detach()
    run_window(fp16_accelerator, model, 2, overflow=True)
    fp16_accelerator.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    assert fp16_accelerator.optimizer_step_was_skipped
    assert torch.equal(before, nn.utils.parameters_to_vector(model.parameters()).detach())
    optimizer.zero_grad()
    run_window(fp16_accelerator, model, 2)
    fp16_accelerator.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    assert not fp16_accelerator.optimizer_step_was_skipped


LEARNING_RATE, MAX_NORM = 0.01, 0.5
SEEDS = range(6)  # of the examples of each window
OVERFLOWING, NOT_OVERFLOWING = 1e37, 1.0  # of which the first is finite in float32, and 2^10 of it are not


class Fp16Run:
    """The loop of the recipes, with fused AdamW and a schedule, over windows whose losses are multiplied."""

    def __init__(self, accelerator: Accelerator, folder: Path, growth_interval: int = 10_000) -> None:
        self.accelerator = accelerator
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=growth_interval)
        accelerator.scaler = self.scaler
        self.model = make_model(TASK).float()
        self.inner = build_optimizer(self.model, OptimizationFlags(learning_rate=LEARNING_RATE, weight_decay=0.1))
        assert self.inner.defaults["fused"]  # which accelerate takes for having stepped
        self.scheduler = LambdaLR(self.inner, lambda step: 1 / (1 + step))  # before the other, as in a run
        self.optimizer: Any = accelerator.prepare_optimizer(self.inner)
        self.said: list[str] = []
        self.nonfinite = NonFiniteCheck(OneRank(), folder, self.said.append, max_skips=2, scaler=self.scaler)
        self.norms: list[float] = []

    def window(self, seed: int, factor: float = NOT_OVERFLOWING, *, autocast: bool = False) -> bool:
        """Train on one; whether it had a step."""
        examples = make_examples(TASK, [3, 9, 4, 12, 5, 7, 2], seed)
        window = make_window(examples, examples[0], whole=examples)
        for micro_batch in window.micro_batches(2):
            with accumulate(self.accelerator, self.model, micro_batch):
                inputs, labels = batch(micro_batch.examples)
                with torch.autocast("cpu", torch.float16, enabled=autocast):
                    logits = self.model(**inputs).logits
                loss = TASK.objective(logits, labels)
                self.accelerator.backward(micro_batch.scaled(loss * factor if micro_batch.index == 1 else loss))
        grad_norm = self.accelerator.clip_grad_norm_(self.model.parameters(), MAX_NORM)
        assert grad_norm is not None
        self.norms.append(float(grad_norm))
        accepted = self.nonfinite.accepts(window, grad_norm)
        if accepted:
            self.optimizer.step()
            self.scheduler.step()
        self.optimizer.zero_grad()
        assert all(p.grad is None for p in self.model.parameters())
        return accepted

    def state(self) -> list[Tensor]:
        """All that a step changes."""
        states = [self.inner.state[p] for p in self.model.parameters() if p in self.inner.state]
        of_optimizer = [state[name] for state in states for name in ("step", "exp_avg", "exp_avg_sq")]
        others = [float(self.scheduler.last_epoch), *self.scheduler.get_last_lr()]
        return [t.detach().clone() for t in (*self.model.parameters(), *of_optimizer, torch.tensor(others))]


def plain_run(seeds: Sequence[int]) -> tuple[list[Tensor], list[float]]:
    """The oracle: plain torch in float64, each window one batch, no scaler. Its state, and the norms of gradients."""
    model = make_model(TASK)
    groups = build_optimizer(model, OptimizationFlags(learning_rate=LEARNING_RATE, weight_decay=0.1)).param_groups
    optimizer = torch.optim.AdamW(
        [{"params": group["params"], "weight_decay": group["weight_decay"]} for group in groups],
        lr=LEARNING_RATE,
        foreach=False,
    )
    scheduler = LambdaLR(optimizer, lambda step: 1 / (1 + step))
    norms = []
    for seed in seeds:
        inputs, labels = batch(make_examples(TASK, [3, 9, 4, 12, 5, 7, 2], seed))
        TASK.whole_loss(model(**inputs).logits, labels).backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)))
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    states = [optimizer.state[p] for p in model.parameters()]
    of_optimizer = [state[name] for state in states for name in ("step", "exp_avg", "exp_avg_sq")]
    others = torch.tensor([float(scheduler.last_epoch), *scheduler.get_last_lr()])
    return [t.detach() for t in (*model.parameters(), *of_optimizer, others)], norms


def assert_alike(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    for a, b in zip(found, expected, strict=True):
        largest = float(b.abs().max())
        # A gradient that is zero by mathematics (of a key's bias: a softmax does not see it) is what others leave
        # that cancel, clipped to MAX_NORM: their rounding in float32 stays, how much of it differs by processor.
        zero = 16 * torch.finfo(torch.float32).eps * MAX_NORM if largest < 1e-12 else 0.0
        assert torch.allclose(a.double(), b.double(), rtol=tolerance, atol=max(zero, tolerance * max(1e-3, largest)))


def test_after_an_overflow_the_run_is_that_without_the_window(fp16_accelerator: Accelerator, tmp_path: Path) -> None:
    run = Fp16Run(fp16_accelerator, tmp_path)
    for seed in SEEDS:
        if seed in (0, 3):  # before there is any state, and after
            before, scale = run.state(), run.scaler.get_scale()
            assert not run.window(99, OVERFLOWING)
            assert run.scaler.get_scale() == scale / 2
            after = run.state()
            assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        scale = run.scaler.get_scale()
        assert run.window(seed)
        assert run.scaler.get_scale() == scale
    expected, norms = plain_run(SEEDS)
    assert_alike(run.state(), expected, 1e-4)
    assert [norm for norm in run.norms if norm < float("inf")] == pytest.approx(norms, rel=1e-4)
    assert len(run.norms) == len(norms) + 2
    assert (run.said, list(tmp_path.iterdir())) == ([], [])  # left to the scaler


def test_the_scale_grows_after_so_many_steps_without_an_overflow_between_them(
    fp16_accelerator: Accelerator, tmp_path: Path
) -> None:
    run = Fp16Run(fp16_accelerator, tmp_path, growth_interval=3)
    scales = []
    for factor in (1, 1, OVERFLOWING, 1, 1, 1, OVERFLOWING, OVERFLOWING, 1, 1, 1):
        run.window(0, factor)
        scales.append(run.scaler.get_scale() / 2**10)
    assert scales == [1, 1, 0.5, 0.5, 0.5, 1, 0.5, 0.25, 0.25, 0.25, 0.5]


def test_half_floats_that_overflow_cost_windows_until_the_scale_fits(
    fp16_accelerator: Accelerator, tmp_path: Path
) -> None:
    """Not made up: the backward under autocast goes over 65,504."""
    run = Fp16Run(fp16_accelerator, tmp_path)
    run.scaler.load_state_dict(run.scaler.state_dict() | {"scale": 2.0**26})
    before = run.state()
    num_overflows = 0
    while not run.window(0, autocast=True):
        num_overflows += 1
        assert all(torch.equal(a, b) for a, b in zip(before, run.state(), strict=True))
    assert 3 <= num_overflows < 26
    assert run.scaler.get_scale() == 2.0 ** (26 - num_overflows)
    for seed in SEEDS[1:]:
        assert run.window(seed, autocast=True)
    expected, norms = plain_run(SEEDS)
    assert run.norms[num_overflows:] == pytest.approx(norms, rel=0.02)
    assert int(run.state()[-1][0]) == int(expected[-1][0]) == len(SEEDS)


def test_a_loss_that_is_not_finite_beside_a_gradient_that_is_makes_no_step_in_fp16_either(
    fp16_accelerator: Accelerator, tmp_path: Path
) -> None:
    """It is no overflow: the scale stays, the window is written out, and the next one has its step."""
    run = Fp16Run(fp16_accelerator, tmp_path)
    assert run.window(0)
    before = run.state()
    examples = make_examples(TASK, [3, 9], 99)
    window = make_window(examples, examples[0], whole=examples)
    for micro_batch in window.micro_batches(2):
        with accumulate(fp16_accelerator, run.model, micro_batch):
            inputs, labels = batch(micro_batch.examples)
            loss = TASK.objective(run.model(**inputs).logits, labels) + torch.inf
            fp16_accelerator.backward(micro_batch.scaled(loss))
    norm = fp16_accelerator.clip_grad_norm_(run.model.parameters(), MAX_NORM)
    assert norm is not None
    assert norm.isfinite()
    assert not run.nonfinite.accepts(window, norm)
    run.optimizer.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(before, run.state(), strict=True))
    assert run.scaler.get_scale() == 2.0**10
    assert (tmp_path / "nonfinite.jsonl").exists()
    assert "(1 of 2 that may be left out)" in run.said[0]
    for seed in SEEDS[1:]:
        assert run.window(seed)
    assert_alike(run.state(), plain_run(SEEDS)[0], 1e-4)


def test_a_norm_that_overflows_over_a_gradient_that_does_not_is_no_overflow_of_the_scale(
    fp16_accelerator: Accelerator, tmp_path: Path
) -> None:
    """The scaler lowers nothing for it: left to it, such windows would be dropped without a word."""
    run = Fp16Run(fp16_accelerator, tmp_path)
    assert run.window(0)
    before = run.state()
    assert not run.window(99, 1e28)
    assert run.norms[-1] == float("inf")
    assert run.scaler.get_scale() == 2.0**10
    assert all(torch.equal(a, b) for a, b in zip(before, run.state(), strict=True))
    assert "gradient norm inf: not finite, so no step is made" in run.said[0]
    for seed in SEEDS[1:]:
        assert run.window(seed)
    assert_alike(run.state(), plain_run(SEEDS)[0], 1e-4)


def test_bf16_gives_the_same_gradient_up_to_its_precision(accelerator: Accelerator) -> None:
    from accelerate.state import GradientState, PartialState

    reference = make_model(TASK).float()
    run_window(accelerator, reference, 7)
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    bf16 = Accelerator(cpu=True, mixed_precision="bf16")
    for micro_batch_size in (1, 3, 7):
        model = bf16.prepare_model(make_model(TASK).float())
        run_window(bf16, model, micro_batch_size)
        found, expected = gradients(model), gradients(reference)
        assert found.dtype == torch.float32
        assert float((found - expected).norm() / expected.norm()) < 0.03
