"""The gradient of a window does not depend on how it is spread over ranks, ranks without examples included."""

import json
from pathlib import Path

import pytest
from launching import launch
from window_cases import TASKS

SCRIPT = Path(__file__).with_name("gradients_over_ranks.py")


HARDEST = ["weights and smoothing", "tokens, weights and smoothing"]
OTHERS = [name for name in TASKS if name not in HARDEST]


@pytest.mark.parametrize(
    ("names", "num_ranks"),
    [
        pytest.param(HARDEST[1:], 2, id="hardest-2", marks=pytest.mark.slow),
        pytest.param(HARDEST, 3, id="hardest-3", marks=pytest.mark.by_hand),
        pytest.param([*HARDEST[:1], *OTHERS], 2, id="others-2", marks=pytest.mark.by_hand),
        pytest.param(OTHERS, 3, id="others-3", marks=pytest.mark.by_hand),
    ],
)
def test_any_spread_over_ranks_gives_the_gradient_of_the_unsplit_batch(names: list[str], num_ranks: int) -> None:
    done = launch(str(SCRIPT), *names, num_processes=num_ranks)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["num_ranks"] == num_ranks
    # Every size there is for windows of 1 to 17: those on one rank, those spread evenly, those at random.
    on_one_rank, evenly = sum(range(1, 18)), sum(-(-size // num_ranks) for size in range(1, 18))
    assert len(result["differences"]) >= len(names) * (on_one_rank + 2 * evenly)
    worst = max(result["differences"], key=result["differences"].get)
    assert result["differences"][worst] <= 1e-12, worst
