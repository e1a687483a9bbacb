"""A window that is not finite on any rank is refused on all of them, written out, and leaves nothing behind."""

import json
import math
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from thread_ranks import ThreadRanks, run_ranks
from torch import nn

from hf_accum.accumulation.accumulate import accumulate, discard_gradients
from hf_accum.accumulation.example import Example
from hf_accum.accumulation.nonfinite import GradientGuard
from hf_accum.accumulation.window import Window
from hf_accum.distributed.ranks import OneRank, Ranks
from hf_accum.errors import NotFinite


def make_window(step: int, loss: float, rank: int = 0, ids: tuple[str, ...] = ("0:1", "0:2")) -> Window:
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
    window.record(torch.tensor(loss))
    return window


def make_guard(
    file: Path,
    said: list[str],
    how: str = "skip",
    *,
    ranks: Ranks | None = None,
    has_scaler: bool = False,
) -> GradientGuard:
    return GradientGuard(
        ranks or OneRank(), file.parent, said.append, max_skips=2 if how == "skip" else 0, has_scaler=has_scaler
    )


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
    guard = make_guard(tmp_path / "nonfinite.jsonl", said)
    assert not guard.refuses(make_window(1, 5.0), torch.tensor(2.0))
    assert not (tmp_path / "nonfinite.jsonl").exists()
    assert guard.refuses(make_window(2, loss), None if norm is None else torch.tensor(norm, dtype=torch.float64))
    assert not guard.refuses(make_window(3, 5.0), 2.0)
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
    guard = make_guard(tmp_path / "nonfinite.jsonl", [], how)
    allowed = 2 if how == "skip" else 0
    for step in range(1, allowed + 1):
        assert guard.refuses(make_window(step, math.nan), 1.0)
        assert guard.gave_up is None
    assert guard.refuses(make_window(9, math.nan), 1.0)
    assert isinstance(guard.gave_up, NotFinite)
    assert str(guard.gave_up).startswith("step 9: loss nan, gradient norm 1.0: not finite")
    assert str(tmp_path / "nonfinite.jsonl") in str(guard.gave_up)
    assert len(lines_of(tmp_path / "nonfinite.jsonl")) == allowed + 1


def test_ranks_refuse_together_where_one_sees_it(tmp_path: Path) -> None:
    file = tmp_path / "nonfinite.jsonl"

    def work(ranks: ThreadRanks) -> list[bool]:
        guard = make_guard(file, [], ranks=ranks)
        outcomes = []
        for step, bad_rank in enumerate([None, 1, None, 0], start=1):
            loss = math.inf if bad_rank == ranks.index else float(ranks.index)
            window = make_window(step, loss, ranks.index, ids=(f"{ranks.index}:{step}",))
            outcomes.append(guard.refuses(window, torch.tensor(1.0)))
        return outcomes

    assert run_ranks(3, work) == [[False, True, False, True]] * 3
    assert [(line["loss_sums"], line["example_ids"]) for line in lines_of(file)] == [
        ([0.0, None, 2.0], ["0:2", "1:2", "2:2"]),
        ([None, 1.0, 2.0], ["0:4", "1:4", "2:4"]),
    ]


def test_overflow_is_left_to_the_scaler_of_fp16(tmp_path: Path) -> None:
    guard = make_guard(tmp_path / "nonfinite.jsonl", [], "stop", has_scaler=True)
    assert not guard.refuses(make_window(1, 1.0), torch.tensor(math.inf))
    assert guard.gave_up is None
    assert not (tmp_path / "nonfinite.jsonl").exists()


def test_a_scaler_s_overflows_without_end_are_no_overflows(tmp_path: Path) -> None:
    guard = make_guard(tmp_path / "nonfinite.jsonl", [], has_scaler=True)
    for step in range(39):
        assert not guard.refuses(make_window(step, 1.0), math.inf)
    assert not guard.refuses(make_window(40, 1.0), 2.0)
    for step in range(41, 80):
        assert not guard.refuses(make_window(step, 1.0), math.nan)
    assert guard.gave_up is None
    assert guard.refuses(make_window(80, 1.0), math.nan)
    assert guard.gave_up is not None
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
    for micro_batch in window.micro_batches(2):
        with accumulate(accelerator, model, micro_batch):
            inputs = torch.randn(2, 2) * (math.nan if micro_batch.index else 1.0)
            loss = model(inputs).sum()
            window.record(loss)
            accelerator.backward(loss * micro_batch.scale)
    grad_norm = accelerator.clip_grad_norm_(model.parameters(), 1.0)
    assert make_guard(tmp_path / "nonfinite.jsonl", []).refuses(window, grad_norm)
    assert any(value.isnan().any() for value in model.state_dict().values())
    discard_gradients(model, window)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@given(norms=st.lists(st.floats(0.5, 2.0), min_size=16, max_size=100), spike=st.floats(20.1, 1e6))
def test_a_spike_is_said_once_and_only_where_enough_is_known(norms: list[float], spike: float) -> None:
    said: list[str] = []
    guard = make_guard(Path("never written"), said)
    for step, norm in enumerate([*norms[:15], spike, *norms], start=1):
        assert not guard.refuses(make_window(step, 1.0), norm)
    assert said == []  # 15 are too few, and nothing else stands out
    for _ in range(3):
        assert not guard.refuses(make_window(200, 1.0), spike)
    assert len(said) == 1
    assert said[0].startswith("step 200: gradient norm ")
    assert not guard.refuses(make_window(201, 1.0), 1.0)
    assert not guard.refuses(make_window(202, 1.0), spike)
    assert len(said) == 2


def test_what_was_left_out_before_a_resume_counts(tmp_path: Path) -> None:
    said: list[str] = []
    guard = GradientGuard(OneRank(), tmp_path, said.append, max_skips=2, has_scaler=False, num_skips=1)
    assert guard.refuses(make_window(5, math.nan), 1.0)
    assert guard.gave_up is None
    assert guard.refuses(make_window(6, math.nan), 1.0)
    assert guard.gave_up is not None
