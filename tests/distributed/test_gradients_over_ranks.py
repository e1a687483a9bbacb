"""The gradient of a window does not depend on how it is spread over ranks, ranks without examples included."""

import json
from pathlib import Path

import pytest
from launching import launch

SCRIPT = Path(__file__).with_name("gradients_over_ranks.py")


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_any_spread_over_ranks_gives_the_gradient_of_the_unsplit_batch(num_ranks: int) -> None:
    done = launch(str(SCRIPT), num_processes=num_ranks)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["num_ranks"] == num_ranks
    assert len(result["differences"]) == 7 * 17 * 3 * 3
    worst = max(result["differences"], key=result["differences"].get)
    assert result["differences"][worst] <= 1e-12, worst
