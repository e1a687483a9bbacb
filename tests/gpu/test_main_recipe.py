"""The main recipe on a GPU, as a user launches it."""

import json
import os
from pathlib import Path

import torch
from gpu_cases import best_precision
from gpu_report import Report
from launching import launch

NUM_STEPS = 50


def test_it_trains_50_steps_under_a_budget_without_a_replay(
    gpu: torch.device, findings: Report, tmp_path: Path
) -> None:
    budget = 2 * 2**30
    done = launch(
        *("--mixed_precision", best_precision(gpu), "-m", "recipes.clinical_classification"),
        *(
            f"--max_steps={NUM_STEPS}",
            "--micro_batch_size=auto",
            f"--memory_budget={budget}",
            "--max_eval_examples=64",
        ),
        f"--output_dir={tmp_path / 'run'}",
        CUDA_VISIBLE_DEVICES=os.environ.get("CUDA_VISIBLE_DEVICES", "0"),
        timeout=400,
        HF_HOME=str(tmp_path / "home"),  # where nothing was tuned yet
    )
    assert done.returncode == 0, done.stderr[-3000:]
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    tuning = json.loads((tmp_path / "run" / "tuning.json").read_text())
    later = steps[10:]
    tokens = sum(step["num_tokens"] for step in later)
    replays = sum(step["num_oom_replays"] for step in steps)
    findings.add(
        "main recipe",
        steps=len(steps),
        num_oom_replays=replays,
        budget_bytes=budget,
        peak_bytes=max(step["peak_memory_bytes"] for step in steps),
        reserved_bytes=max(step.get("reserved_memory_bytes", 0) for step in steps),
        num_alloc_retries=max(step.get("num_alloc_retries", 0) for step in steps),
        largest=tuning["largest_micro_batch"],
        tuning_seconds=tuning["seconds"],
        tokens_per_second=tokens / sum(step["step_seconds"] for step in later),
        first_loss=steps[0]["loss"],
        last_loss=steps[-1]["loss"],
    )
    assert len(steps) == NUM_STEPS
    assert replays == 0
    assert max(step["peak_memory_bytes"] for step in steps) <= budget
    assert tuning["device"].startswith("cuda")
