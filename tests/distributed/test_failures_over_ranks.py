"""Memory that runs out on one rank changes no step of any rank, and leaves no rank waiting."""

import ast
import json
import re
from pathlib import Path

import pytest
from launching import launch

SCRIPT = Path(__file__).with_name("failures_over_ranks.py")
WRAPPED = [
    pytest.param("plain", marks=pytest.mark.slow),
    pytest.param("prepared", marks=pytest.mark.by_hand),
    pytest.param("used", marks=pytest.mark.by_hand),
]
HUNG = 60  # seconds in one window


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_memory_that_runs_out_at_any_operation_of_any_rank_leaves_the_step_as_it_would_have_been(
    wrapped: str,
) -> None:
    done = launch(str(SCRIPT), wrapped, "once", str(HUNG), num_processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    cases = result["cases"]
    first, second = result["num_operations"]
    assert first > second > 50
    # Rank 0 alone, rank 1 alone, both at the same operation where both have it, both at different ones.
    assert len(cases) == 1 + first + second + max(first, second) + first
    for name, case in cases.items():
        fails_at = [None, None] if name == "clean" else ast.literal_eval(re.sub(r".*: ", "", name))
        assert case["gradients"] <= 1e-12, name
        assert case["weights"] <= 1e-12, name
        assert case["steps"] == [1], name
        assert case["replays"] == [int(at is not None) for at in fails_at], name
        assert case["loss"] == pytest.approx(cases["clean"]["loss"], rel=1e-12), name


@pytest.mark.parametrize(
    "wrapped",
    [pytest.param("plain", marks=pytest.mark.slow), pytest.param("prepared", marks=pytest.mark.by_hand)],
)
def test_a_single_example_that_never_fits_on_one_rank_ends_all_of_them(wrapped: str) -> None:
    done = launch(str(SCRIPT), wrapped, "never fits", str(HUNG), num_processes=2)
    assert done.returncode != 0
    assert "Timeout (" not in done.stderr, done.stderr[-3000:]  # faulthandler's
    assert "a single example of 7 tokens does not fit into memory (OutOfMemoryError: out of memory" in done.stderr
    assert "a step was made" not in done.stderr
