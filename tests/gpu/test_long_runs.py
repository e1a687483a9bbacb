"""Windows one after the other: no retries at the limit, few waits, and losses that the frozen type leaves alone."""

from pathlib import Path

import pytest
import torch
from gpu_cases import accelerator_on, best_precision, count_waits, make_job, run_long
from gpu_report import Report

from hf_accum.device.memory import open_memory
from hf_accum.tuner.run_capacity import cutter_of
from hf_accum.tuner.search import tune

LONGEST = 512
WINDOW = 32


def test_300_windows_at_the_limit_without_a_retry_after_the_20th(
    gpu: torch.device, findings: Report, tmp_path: Path
) -> None:
    num_windows, settled, budget = 300, 20, 2 * 2**30
    precision = best_precision(gpu)
    job = make_job(tmp_path, "BERT-base", gpu, precision, LONGEST, 2000)
    memory = open_memory(gpu, budget)
    tuning = tune(job.work, memory, gpu, most=WINDOW)
    torch.cuda.reset_peak_memory_stats(gpu)
    with accelerator_on(gpu, precision) as accelerator:
        run = run_long(job, accelerator, cutter_of(tuning, gpu), WINDOW, num_windows)
    findings.add(
        "at the limit",
        windows=len(run.num_retries),
        largest=tuning.largest(),
        retries=run.num_retries[-1] - run.num_retries[0],
        retries_after_20=run.num_retries[-1] - run.num_retries[settled - 1],
        replays=run.num_replays,
        budget_bytes=budget,
        allocated_bytes=torch.cuda.max_memory_allocated(gpu),
        reserved_bytes=torch.cuda.max_memory_reserved(gpu),
        tokens_per_second=run.num_tokens / run.seconds,
    )
    assert len(run.num_retries) == num_windows
    assert tuning.capacity.num_examples(LONGEST) < WINDOW  # or it is no limit
    assert run.num_retries[-1] == run.num_retries[settled - 1]
    assert run.num_replays == 0
    assert torch.cuda.max_memory_reserved(gpu) <= budget


def test_the_host_waits_for_the_device_at_most_once_in_a_micro_batch(
    gpu: torch.device, findings: Report, tmp_path: Path
) -> None:
    precision = best_precision(gpu)
    job = make_job(tmp_path, "BERT-base", gpu, precision, 128, 1000)
    with accelerator_on(gpu, precision) as accelerator:
        waits = count_waits(job, accelerator, 4, WINDOW, 20)
    findings.add(
        "waits",
        waits=waits.num_waits,
        micro_batches=waits.num_micro_batches,
        per_micro_batch=waits.num_waits / waits.num_micro_batches,
        where=waits.where,
    )
    assert waits.num_micro_batches >= 10 * WINDOW // 4
    assert waits.num_waits <= waits.num_micro_batches


def test_frozen_weights_in_16_bits_give_the_losses_of_float32(
    gpu: torch.device, findings: Report, tmp_path: Path
) -> None:
    if best_precision(gpu) != "bf16":
        pytest.skip("no bf16 on this device")
    runs = {}
    for dtype in ("float32", "auto"):
        job = make_job(tmp_path, "BERT-base", gpu, "bf16", 128, 1000, frozen_dtype=dtype)
        torch.cuda.reset_peak_memory_stats(gpu)
        with accelerator_on(gpu, "bf16") as accelerator:
            runs[dtype] = run_long(job, accelerator, 8, WINDOW, 30)
        findings.add(
            "frozen weights",
            dtype=dtype,
            first_loss=runs[dtype].losses[0],
            last_loss=runs[dtype].losses[-1],
            allocated_bytes=torch.cuda.max_memory_allocated(gpu),
            tokens_per_second=runs[dtype].num_tokens / runs[dtype].seconds,
        )
        del job
    apart = [abs(a - b) / b for a, b in zip(runs["auto"].losses, runs["float32"].losses, strict=True)]
    findings.add("frozen weights", dtype="furthest apart", share=max(apart))
    assert len(apart) == 30
    assert max(apart) <= 0.01
