"""Folders of runs that never ran: their files as a run writes them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

CONFIG = """model: null
dataset: notes.jsonl
effective_batch_size: 32
micro_batch_size: auto
learning_rate: 0.001
lora:
  rank: 16
  alpha: 32.0
output_dir: somewhere
seed: 0
"""
CAPACITY = {
    "most": 32,
    "peak": {"moments": [[0.0, 0.0, 0.0, 0.0, 512.0, 0.0]], "unit_length": 512, "single": None},
    "budget_bytes": 4096.0,
    "at_least": 8,
}
"""A byte for each token, and 4,096 of them."""
TUNING = {
    "budget_bytes": 2**31,
    "device": "cpu",
    "max_length": 512,
    "largest_micro_batch": {"512": 8, "256": 16, "128": 32},
    "probes": [{"num_examples": 8, "length": 512, "fits": True}, {"num_examples": 9, "length": 512, "fits": False}],
    "capacity": CAPACITY,
}


def step_line(step: int, **others: Any) -> dict[str, Any]:
    """A line of metrics.jsonl."""
    line = {
        "step": step,
        "epoch": 0,
        "loss": 3 / step + 0.1 * (step % 7),
        "grad_norm": 1.0 + step % 3,
        "learning_rate": 0.001 / step,
        "num_examples": 32,
        "num_items": 32.0,
        "num_tokens": 800,
        "num_padded_tokens": 1000,
        "num_micro_batches": 4,
        "step_seconds": 0.5,
        "peak_memory_bytes": 2**30,
        "num_oom_replays": 0,
        "window_digest": f"{step:032x}",
        "data_wait_share": 0.1,
    }
    return line | others


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_run(
    folder: Path, num_steps: int = 10, *, through: bool = True, classes: Iterable[str] = ("flu", "cold")
) -> Path:
    """A classification's folder, of as many held-out examples as its classes have pairs."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "tuning.json").write_text(json.dumps(TUNING))
    write_lines(folder / "metrics.jsonl", (step_line(step) for step in range(1, num_steps + 1)))
    names = list(classes)
    rows = [
        {
            "id": f"notes.jsonl:{number}",
            "label": true,
            "prediction": predicted,
            "probabilities": dict.fromkeys(names, round(1 / len(names), 6)),
            "loss": 9.0 - number,
        }
        for number, (true, predicted) in enumerate(((a, b) for a in names for b in names), 1)
    ]
    if through:
        one = {"precision": 0.5, "recall": None, "f1": 0.25, "support": 2.0}
        bins = [
            {"above": 0.0, "to": 0.5, "count": 0, "confidence": None, "accuracy": None},
            {"above": 0.5, "to": 1.0, "count": len(rows), "confidence": 0.75, "accuracy": 0.5},
        ]
        figures = {
            "step": num_steps,
            "num_examples": len(rows),
            "loss": 1.25,
            "accuracy": 0.5,
            "calibration": {"reliability": bins},
            "per_class": dict.fromkeys(names, one),
            "notes": ["a note"],
            "confidence_intervals": {"accuracy": [0.25, 0.75]},
            "bootstrap": {"level": 0.95, "num_groups": 1200, "num_resamples": 1000},
        }
        (folder / "evaluation.json").write_text(json.dumps(figures))
        write_lines(folder / "predictions.jsonl", rows)
        write_lines(folder / "errors.jsonl", ({**row, "text": f"the text of {row['id']}"} for row in rows))
    return folder


def write_long_run(folder: Path, num_steps: int = 10_000, num_classes: int = 25) -> Path:
    """A run of many steps, with replays, skipped windows, resumes, checkpoints, and one damaged line."""
    write_run(folder, 1, classes=[f"class {number} of a long name" for number in range(num_classes)])
    generator = np.random.default_rng(0)

    def line(step: int) -> dict[str, Any]:
        tokens = int(generator.integers(300, 6000))
        is_skip = step in (500, 501)
        return step_line(
            step,
            loss=None if is_skip else float(generator.normal(2, 0.3)),
            grad_norm=None if is_skip else float(generator.lognormal()),
            num_tokens=tokens,
            num_padded_tokens=int(tokens * generator.uniform(1, 1.5)),
            num_micro_batches=int(generator.integers(1, 9)),
            step_seconds=float(generator.lognormal(-0.3, 0.2)),
            num_oom_replays=int(generator.random() < 0.02),
            reserved_memory_bytes=2**30,
            num_alloc_retries=step // 3000,
        )

    write_lines(folder / "metrics.jsonl", map(line, range(1, num_steps + 1)))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10')
    skip = {"epoch": 0, "window_digest": "ab", "grad_norm": None, "loss_sums": [None], "example_ids": ["0:1", "0:2"]}
    write_lines(folder / "nonfinite.jsonl", ({"step": step, **skip} for step in (500, 501)))
    write_lines(folder / "resumes.jsonl", ({"step": step} for step in (2000, 5300, 5300)))
    for step in (9000, 10_000):
        (folder / "checkpoints" / f"step-{step:08}").mkdir(parents=True)
    return folder
