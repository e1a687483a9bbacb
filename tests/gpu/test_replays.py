"""Memory that runs out in mid-run: the window starts anew, with the same gradient, and nothing of it is left."""

from pathlib import Path

import pytest
import torch
from gpu_cases import accelerator_on, make_job
from gpu_report import Report
from gpu_windows import relative_difference, run_job_window, run_replayed, run_window

TASK = "weights and smoothing"
SCALARS = 4096  # bytes: what is noted of a micro-batch is a number, which takes a block of 512


@pytest.mark.parametrize("at", [5, 200, 600])
def test_a_made_up_error_in_mid_window_leaves_the_gradient_and_no_bytes(
    gpu: torch.device, findings: Report, at: int
) -> None:
    with accelerator_on(gpu) as accelerator:
        run_window(accelerator, TASK, 3)  # what is loaded or allocated once
        outcome = run_replayed(accelerator, TASK, at)
    before, after = outcome.allocated
    findings.add(
        "replays",
        error="made up",
        at=at,
        replays=outcome.window.num_oom_replays,
        difference=outcome.difference,
        before_bytes=before,
        after_bytes=after,
    )
    assert outcome.window.num_oom_replays == 1
    assert outcome.difference <= 1e-10
    assert abs(after - before) <= SCALARS


def test_a_device_that_is_full_in_earnest_leaves_the_gradient_and_no_bytes(
    gpu: torch.device, findings: Report, tmp_path: Path
) -> None:
    """float32, the same examples in micro-batches that fit from the start."""
    job = make_job(tmp_path, "BERT-base", gpu, "no", 256, 8)
    total = torch.cuda.get_device_properties(gpu).total_memory
    with accelerator_on(gpu) as accelerator:
        expected = run_job_window(job, accelerator, most=3, num_examples=64, length=256)
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(2.5 * 2**30 / total, gpu)
        found = run_job_window(job, accelerator, most=64, num_examples=64, length=256)
    difference = relative_difference(found.gradients, expected.gradients)
    findings.add(
        "replays",
        error="real",
        replays=found.window.num_oom_replays,
        difference=difference,
        before_bytes=found.allocated[0],
        after_bytes=max(found.allocated[1:], default=0),
        said=found.window.last_replay,
    )
    assert found.window.num_oom_replays >= 1
    assert difference <= 1e-4
    assert max(found.allocated) - found.allocated[0] <= SCALARS
