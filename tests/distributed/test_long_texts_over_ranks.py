"""Long texts over ranks, some of which have no windows to pool: the gradient of one graph over all."""

import json
from pathlib import Path

import pytest
from launching import launch

SCRIPT = Path(__file__).with_name("long_texts_over_ranks.py")


@pytest.mark.slow
def test_long_texts_on_two_ranks_have_the_gradient_of_one_graph() -> None:
    done = launch(str(SCRIPT), num_processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["num_ranks"] == 2
    assert len(result["differences"]) == 3 * 3 * 3 * 2
    for name, difference in result["differences"].items():
        assert difference <= 1e-12, name
