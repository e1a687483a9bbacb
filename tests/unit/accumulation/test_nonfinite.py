"""A window that is not finite on any rank is refused on all of them, written out, and leaves nothing behind."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from thread_ranks import ThreadRanks, run_ranks
from torch import nn

from hf_accum.accumulation.accumulate import accumulate, discard_gradients
from hf_accum.accumulation.example import Example
from hf_accum.accumulation.execution import WindowExecution
from hf_accum.accumulation.nonfinite import NonFiniteCheck
from hf_accum.accumulation.window import Window
from hf_accum.distributed.ranks import OneRank, Ranks
from hf_accum.errors import NotFinite


def make_window(step: int, loss: float, rank: int = 0, ids: tuple[str, ...] = ("0:1", "0:2")) -> WindowExecution:
    examples = tuple(Example(i, 3, 1.0, {}) for i in ids)
    window = Window(
        step=step,
        epoch=0,
        seed=0,
        examples=examples,
        dummy=Example("stand-in", 3, 1.0, {}),
        rank=rank,
        num_examples=len(ids),
        num_items=len(ids),
        num_tokens=3 * len(ids),
        digest=f"digest {step}",
    )
    execution = WindowExecution(window)
    execution.is_done = True
    execution.note(torch.tensor(loss))
    return execution


def make_check(
    file: Path,
    said: list[str],
    how: str = "skip",
    *,
    ranks: Ranks | None = None,
    scaler: Any = None,
) -> NonFiniteCheck:
    return NonFiniteCheck(
        ranks or OneRank(), file.parent, said.append, max_skips=2 if how == "skip" else 0, scaler=scaler
    )


class FakeScaler:
    """That of fp16, as far as it is asked; it has found an overflow whenever it is told."""

    def __init__(self) -> None:
        self.num_updates = 0

    def update(self) -> None:
        self.num_updates += 1

    def get_scale(self) -> float:
        return 0.5**self.num_updates


def lines_of(file: Path) -> list[dict[str, object]]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in file.read_text().splitlines()]


@pytest.mark.parametrize(
    ("loss", "norm"),
    [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf), (-math.inf, math.nan), (1.0, None)],
)
def test_a_loss_or_gradient_that_is_not_finite_is_refused(loss: float, norm: float | None, tmp_path: Path) -> None:
    said: list[str] = []
    nonfinite = make_check(tmp_path / "nonfinite.jsonl", said)
    assert nonfinite.accepts(make_window(1, 5.0), torch.tensor(2.0))
    assert not (tmp_path / "nonfinite.jsonl").exists()
    assert not nonfinite.accepts(
        make_window(2, loss), None if norm is None else torch.tensor(norm, dtype=torch.float64)
    )
    assert nonfinite.accepts(make_window(3, 5.0), 2.0)
    assert lines_of(tmp_path / "nonfinite.jsonl") == [
        {
            "step": 2,
            "epoch": 0,
            "window_digest": "digest 2",
            "grad_norm": norm if norm == 1 else None,
            "loss_sums": [loss if loss == 1 else None],
            "example_ids": ["0:1", "0:2"],
        }
    ]
    assert len(said) == 1
    assert said[0].startswith("step 2: loss ")
    assert "(1 of 2 that may be left out)" in said[0]


@pytest.mark.parametrize("how", ["stop", "skip"])
def test_it_gives_up_at_once_or_after_the_skips_allowed(how: str, tmp_path: Path) -> None:
    nonfinite = make_check(tmp_path / "nonfinite.jsonl", [], how)
    allowed = 2 if how == "skip" else 0
    for step in range(1, allowed + 1):
        assert not nonfinite.accepts(make_window(step, math.nan), 1.0)
        assert nonfinite.gave_up is None
    assert not nonfinite.accepts(make_window(9, math.nan), 1.0)
    assert isinstance(nonfinite.gave_up, NotFinite)
    assert str(nonfinite.gave_up).startswith("step 9: loss nan, gradient norm 1.0: not finite")
    assert str(tmp_path / "nonfinite.jsonl") in str(nonfinite.gave_up)
    assert len(lines_of(tmp_path / "nonfinite.jsonl")) == allowed + 1


def test_ranks_refuse_together_where_one_sees_it(tmp_path: Path) -> None:
    file = tmp_path / "nonfinite.jsonl"

    def work(ranks: ThreadRanks) -> list[bool]:
        nonfinite = make_check(file, [], ranks=ranks)
        outcomes = []
        for step, bad_rank in enumerate([None, 1, None, 0], start=1):
            loss = math.inf if bad_rank == ranks.index else float(ranks.index)
            window = make_window(step, loss, ranks.index, ids=(f"{ranks.index}:{step}",))
            outcomes.append(not nonfinite.accepts(window, torch.tensor(1.0)))
        return outcomes

    assert run_ranks(3, work) == [[False, True, False, True]] * 3
    assert [(line["loss_sums"], line["example_ids"]) for line in lines_of(file)] == [
        ([0.0, None, 2.0], ["0:2", "1:2", "2:2"]),
        ([None, 1.0, 2.0], ["0:4", "1:4", "2:4"]),
    ]


def test_overflow_is_left_to_the_scaler_of_fp16(tmp_path: Path) -> None:
    scaler = FakeScaler()
    nonfinite = make_check(tmp_path / "nonfinite.jsonl", [], "stop", scaler=scaler)
    assert not nonfinite.accepts(make_window(1, 1.0), torch.tensor(math.inf))
    assert scaler.num_updates == 1  # lowers its scale
    assert nonfinite.gave_up is None
    assert nonfinite.num_skips == 0
    assert not (tmp_path / "nonfinite.jsonl").exists()
    assert nonfinite.accepts(make_window(2, 1.0), torch.tensor(1.0))
    assert scaler.num_updates == 1  # the optimizer's step does it


def test_a_real_scaler_halves_its_scale_at_an_overflow_and_the_step_is_left_out(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    nonfinite = make_check(tmp_path / "nonfinite.jsonl", [], "stop", scaler=scaler)
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    for factor, accepted, scale in ((1.0, True, 2.0**10), (math.inf, False, 2.0**9), (1.0, True, 2.0**9)):
        scaler.scale((weight * factor).sum()).backward()
        scaler.unscale_(optimizer)
        before = weight.detach().clone()
        assert nonfinite.accepts(make_window(1, 1.0), nn.utils.clip_grad_norm_([weight], 1.0)) == accepted
        if accepted:
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad()
        assert scaler.get_scale() == scale
        assert torch.equal(weight, before) == (not accepted)


def test_a_scaler_s_overflows_without_end_are_no_overflows(tmp_path: Path) -> None:
    nonfinite = make_check(tmp_path / "nonfinite.jsonl", [], scaler=FakeScaler())
    for step in range(39):
        assert not nonfinite.accepts(make_window(step, 1.0), math.inf)
    assert nonfinite.accepts(make_window(40, 1.0), 2.0)
    for step in range(41, 80):
        assert not nonfinite.accepts(make_window(step, 1.0), math.nan)
    assert nonfinite.gave_up is None
    assert not nonfinite.accepts(make_window(80, 1.0), math.nan)
    assert nonfinite.gave_up is not None
    assert [line["step"] for line in lines_of(tmp_path / "nonfinite.jsonl")] == [80]


def test_a_refused_window_leaves_no_gradient_and_no_statistics(accelerator: Accelerator, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    examples = tuple(Example(str(i), 1, 1.0, {}) for i in range(4))
    window = Window(
        step=1,
        epoch=0,
        seed=0,
        examples=examples,
        dummy=examples[0],
        rank=0,
        num_examples=4,
        num_items=4.0,
        num_tokens=4,
        digest="",
    )
    execution = WindowExecution(window)
    for micro_batch in execution.micro_batches(2):
        with accumulate(accelerator, model, micro_batch):
            inputs = torch.randn(2, 2) * (math.nan if micro_batch.index else 1.0)
            loss = model(inputs).sum()
            accelerator.backward(micro_batch.scaled(loss))
    grad_norm = accelerator.clip_grad_norm_(model.parameters(), 1.0)
    assert not make_check(tmp_path / "nonfinite.jsonl", []).accepts(execution, grad_norm)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    discard_gradients(model, execution)
    assert all(p.grad is None for p in model.parameters())


@given(norms=st.lists(st.floats(0.5, 2.0), min_size=16, max_size=100), spike=st.floats(20.1, 1e6))
def test_a_spike_is_said_once_and_only_where_enough_is_known(norms: list[float], spike: float) -> None:
    said: list[str] = []
    nonfinite = make_check(Path("never written"), said)
    for step, norm in enumerate([*norms[:15], spike, *norms], start=1):
        assert nonfinite.accepts(make_window(step, 1.0), norm)
    assert said == []  # 15 are too few, and nothing else stands out
    for _ in range(3):
        assert nonfinite.accepts(make_window(200, 1.0), spike)
    assert len(said) == 1
    assert said[0].startswith("step 200: gradient norm ")
    assert nonfinite.accepts(make_window(201, 1.0), 1.0)
    assert nonfinite.accepts(make_window(202, 1.0), spike)
    assert len(said) == 2


@given(norms=st.lists(st.floats(0.5, 2.0), min_size=16, max_size=100), spike=st.floats(20.1, 1e6))
def test_it_goes_on_from_its_state_as_if_it_had_not_been_parted(norms: list[float], spike: float) -> None:
    steps = [*norms, spike, spike, 1.0, spike]
    told: list[list[str]] = [[], []]
    whole, first = make_check(Path("never written"), told[0]), make_check(Path("never written"), told[1])
    for step, norm in enumerate(steps):
        whole.accepts(make_window(step, 1.0), norm)
        first.accepts(make_window(step, 1.0), norm)
        state = json.loads(json.dumps(first.state_dict()))
        first = make_check(Path("never written"), told[1])
        first.load_state_dict(state)
    assert told[0] == told[1]
    assert len(told[0]) == 2


def test_what_was_left_out_before_a_resume_counts(tmp_path: Path) -> None:
    before = make_check(tmp_path / "nonfinite.jsonl", [])
    assert not before.accepts(make_window(4, math.nan), 1.0)
    nonfinite = make_check(tmp_path / "nonfinite.jsonl", [])
    nonfinite.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert not nonfinite.accepts(make_window(5, math.nan), 1.0)
    assert nonfinite.gave_up is None
    assert not nonfinite.accepts(make_window(6, math.nan), 1.0)
    assert nonfinite.gave_up is not None


def test_a_window_at_which_it_gives_up_is_not_done(tmp_path: Path) -> None:
    """A run that ends there goes on before it."""
    skipped, given_up = make_window(1, math.nan), make_window(2, math.nan)
    for execution, how in ((skipped, "skip"), (given_up, "stop")):
        execution.is_done = True
        assert not make_check(tmp_path / how / "nonfinite.jsonl", [], how).accepts(execution, 1.0)
    assert skipped.is_done
    assert not given_up.is_done
