"""This loop beside its peers in one process, on the same texts, model and budget: time of a real token, and peaks.

Nothing is asserted of who is faster: the table says it.
"""

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gpu_cases import Job, best_precision, make_job, make_language_job, plain_language_model
from gpu_peers import PeerRun, own_run, sft_run, trainer_run
from gpu_report import Report

from hf_accum.device.memory import open_memory
from hf_accum.tuner.run_capacity import cutter_of
from hf_accum.tuner.search import tune

LONGEST = 512
WINDOW = 64
NUM_ROWS = 25 * WINDOW
BUDGET = 6 * 2**30
SIZES = (4, 8, 16, 32, 64)


def add(findings: Report, loop: str, size: object, run: PeerRun | None) -> None:
    figures = (
        {"microseconds_per_token": "does not fit"}
        if run is None
        else {
            "microseconds_per_token": run.microseconds_per_token,
            "seconds": run.seconds,
            "real_tokens": run.num_tokens,
            "allocated_bytes": run.allocated_bytes,
            "reserved_bytes": run.reserved_bytes,
        }
    )
    findings.add("peers", loop=loop, at_once=size, **figures)


def test_classification_beside_transformers_trainer(gpu: torch.device, findings: Report, tmp_path: Path) -> None:
    precision = best_precision(gpu)
    open_memory(gpu, BUDGET)  # for all of them

    def job(num_rows: int = NUM_ROWS) -> Job:
        gc.collect()  # what a Trainer leaves has cycles
        torch.cuda.empty_cache()
        return make_job(tmp_path, "BERT-base", gpu, precision, LONGEST, num_rows)

    own_run(job(2 * WINDOW), precision, 4, WINDOW)  # kernels are loaded
    trainer_run(job(2 * WINDOW), tmp_path / "trainer", precision, 4, WINDOW)
    ours = job()
    tuning = tune(ours.work, open_memory(gpu, BUDGET), gpu, most=WINDOW)
    run = own_run(ours, precision, cutter_of(tuning, gpu), WINDOW)
    add(findings, "hf_accum", f"{tuning.capacity.num_examples(LONGEST)} of {LONGEST}", run)
    assert run.reserved_bytes <= BUDGET
    del ours
    theirs: dict[int, PeerRun] = {}
    for size in SIZES:
        found = _or_none(lambda size=size: trainer_run(job(), tmp_path / "trainer", precision, size, WINDOW))
        add(findings, "Trainer", size, found)
        if found is not None:
            theirs[size] = found
    assert theirs
    best = min(theirs, key=lambda size: theirs[size].microseconds_per_token)
    grouped = _or_none(lambda: trainer_run(job(), tmp_path / "trainer", precision, best, WINDOW, by_length=True))
    add(findings, "Trainer, grouped by length", best, grouped)


def test_language_modelling_beside_trl(gpu: torch.device, findings: Report, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    precision = best_precision(gpu)
    model = "Llama 100 M"
    memory = open_memory(gpu, BUDGET)
    warm = make_language_job(tmp_path, model, gpu, precision, LONGEST, 2 * WINDOW)
    own_run(warm, precision, 4, WINDOW)
    ours = make_language_job(tmp_path, model, gpu, precision, LONGEST, NUM_ROWS)
    tuning = tune(ours.work, memory, gpu, most=WINDOW)
    run = own_run(ours, precision, cutter_of(tuning, gpu), WINDOW)
    add(findings, "hf_accum, language", f"{tuning.capacity.num_examples(LONGEST)} of {LONGEST}", run)
    for size in SIZES:
        gc.collect()
        torch.cuda.empty_cache()
        plain = plain_language_model(tmp_path, model, gpu, precision)
        found = _or_none(
            lambda plain=plain, size=size: sft_run(ours, plain, tmp_path / "trl", precision, size, WINDOW)
        )
        add(findings, "TRL SFTTrainer", size, found)


def _or_none(run: Callable[[], PeerRun]) -> PeerRun | None:
    """None where memory ran out."""
    try:
        return run()
    except torch.OutOfMemoryError:
        return None
