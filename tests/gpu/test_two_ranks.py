"""Two ranks on two GPUs, over NCCL: the gradient of the unsplit batch, and rank 0's weights."""

import json
import os
from pathlib import Path

import pytest
import torch
from gpu_report import Report
from launching import launch

SCRIPTS = Path(__file__).parents[1] / "distributed"
VISIBLE = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1")


@pytest.mark.two_gpus
@pytest.mark.parametrize("name", ["weights and smoothing", "tokens, weights and smoothing"])
def test_any_spread_over_two_gpus_gives_the_gradient_of_the_unsplit_batch(
    gpu: torch.device, findings: Report, name: str
) -> None:
    done = launch(str(SCRIPTS / "gradients_over_ranks.py"), name, num_processes=2, CUDA_VISIBLE_DEVICES=VISIBLE)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    worst = max(result["differences"], key=result["differences"].get)
    findings.add(
        "two ranks",
        task=name,
        device=result["device"],
        cases=len(result["differences"]),
        largest_difference=result["differences"][worst],
    )
    assert result["num_ranks"] == 2
    assert result["device"] == "cuda"
    assert result["differences"][worst] <= 1e-10, worst


@pytest.mark.two_gpus
def test_trained_weights_are_those_of_rank_0(gpu: torch.device) -> None:
    done = launch(str(SCRIPTS / "weights_over_ranks.py"), num_processes=2, CUDA_VISIBLE_DEVICES=VISIBLE)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    first, second = result["after"]
    assert {name for name in second if second[name] != first[name]} == {"frozen.weight", "packed"}
