"""fp16 on a device, with accelerate's own scaler: a window that overflows makes no step, and the schedule waits."""

from pathlib import Path

import torch
from gpu_cases import accelerator_on
from gpu_report import Report
from gpu_windows import check_fp16, run_fp16


def test_windows_that_overflow_are_skipped_and_the_schedule_stands_still(
    gpu: torch.device, findings: Report, tmp_path: Path
) -> None:
    with accelerator_on(gpu, "fp16") as accelerator:
        assert accelerator.scaler is not None
        accelerator.scaler.load_state_dict(accelerator.scaler.state_dict() | {"scale": 2.0**26})
        run = run_fp16(accelerator, tmp_path, 20)
    num_overflows = check_fp16(run)
    findings.add("fp16", windows=20, overflows=num_overflows, first_scale=run.scales[0], last_scale=run.scales[-1])
    assert 1 <= num_overflows < 20
