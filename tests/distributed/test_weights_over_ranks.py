"""What is trained is the same on all ranks before the first step."""

import json
from pathlib import Path

import pytest
from launching import launch

SCRIPT = Path(__file__).with_name("weights_over_ranks.py")


@pytest.mark.slow
def test_trained_weights_and_buffers_are_those_of_rank_0_and_frozen_ones_are_left_alone() -> None:
    done = launch(str(SCRIPT), num_processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert [set(values.values()) for values in result["before"]] == [{1.0}, {0.0}]
    first, second = result["after"]
    assert first == result["before"][0]
    frozen = {"frozen.weight", "packed"}
    assert {name for name in second if second[name] != first[name]} == frozen
    assert {"trained.weight", "narrow", "norm.running_mean", "norm.num_batches_tracked", "mask"} <= set(second)
