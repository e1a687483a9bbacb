"""A window's gradient on a device is that of the unsplit batch, in float64, however it is cut."""

import pytest
import torch
from gpu_cases import accelerator_on
from gpu_report import Report
from gpu_windows import LENGTHS, run_window

MOST = 1e-10


@pytest.mark.parametrize("size", [1, 3, len(LENGTHS)])
@pytest.mark.parametrize("name", ["plain", "weights and smoothing", "multi-label", "tokens, weights and smoothing"])
def test_any_cut_gives_the_gradient_of_the_unsplit_batch(
    gpu: torch.device, findings: Report, name: str, size: int
) -> None:
    with accelerator_on(gpu) as accelerator:
        outcome = run_window(accelerator, name, size)
    findings.add(
        "gradients",
        task=name,
        at_once=size,
        micro_batches=outcome.window.num_micro_batches,
        largest_difference=outcome.difference,
    )
    assert outcome.difference <= MOST
