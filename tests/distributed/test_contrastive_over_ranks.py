"""Negatives over all ranks: the gradient of one unsplit batch, also where one of them runs out of memory."""

import json
from pathlib import Path

import pytest
from launching import launch

SCRIPT = Path(__file__).with_name("contrastive_over_ranks.py")


@pytest.mark.parametrize(
    "num_ranks", [pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.by_hand)]
)
def test_negatives_over_all_ranks_give_the_gradient_of_one_unsplit_batch(num_ranks: int) -> None:
    done = launch(str(SCRIPT), num_processes=num_ranks)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["num_ranks"] == num_ranks
    cases = result["cases"]
    assert len(cases) > 30
    for name, (difference, replays) in cases.items():
        assert difference <= 1e-12, name
        fails = name.startswith("fails on ")
        failing = range(num_ranks) if name.startswith("fails on all") else [int(name.split()[2])] if fails else []
        assert replays == [int(rank in failing) for rank in range(num_ranks)], name
