"""The largest micro-batch that the tuner finds under a budget is the largest that there is: tried one by one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gpu_cases import best_precision, make_job, most_that_fit, step_of
from gpu_report import Report

from hf_accum.device.live_bytes import tensors_of
from hf_accum.device.memory import open_memory
from hf_accum.tuner.forwards import tune_forwards
from hf_accum.tuner.search import tune

LONGEST = 512
MOST = 512


@pytest.mark.parametrize(("budget", "checkpointing"), [("4GiB", False), ("2GiB", True)])
def test_one_more_does_not_fit_the_budget_and_that_many_do(
    gpu: torch.device, findings: Report, tmp_path: Path, budget: str, checkpointing: bool
) -> None:
    precision = best_precision(gpu)
    flags = {"gradient_checkpointing": checkpointing}
    work = make_job(tmp_path, "BERT-base", gpu, precision, LONGEST, 8, **flags).work
    memory = open_memory(gpu, budget)
    tuning = tune(work, memory, gpu, most=MOST)
    optimizer = work.optimizer(work.model)
    step_of(work, optimizer, 1, LONGEST, gpu)  # which makes its state
    state = [t for values in optimizer.state.values() for t in values.values() if isinstance(t, torch.Tensor)]

    def fits(num_examples: int, length: int = LONGEST) -> bool:
        held = [*tensors_of(work.model), *state]
        peak = memory.measure(lambda: step_of(work, optimizer, num_examples, length, gpu), held)
        work.model.zero_grad()
        return peak is not None and peak <= memory.limit_bytes

    longest = tuning.capacity.num_examples(LONGEST)
    really = most_that_fit(fits, longest)
    row = {"budget": budget, "checkpointing": checkpointing, "probes": len(tuning.probes), "seconds": tuning.seconds}
    findings.add("capacity", **row, length=LONGEST, found=longest, really=really, fits=really >= longest)
    shorter = {length: tuning.capacity.num_examples(length) for length in (256, 128, 64)}
    fit = {length: fits(number, length) for length, number in shorter.items()}
    for length, number in shorter.items():
        findings.add("capacity", **row, length=length, found=number, fits=fit[length])
    assert longest == really
    assert all(fit.values()), fit


@pytest.mark.parametrize(("budget", "most"), [("1GiB", 512), ("16GiB", 32)], ids=["scarce", "ample"])
def test_forwards_alone_fit_the_budget(
    gpu: torch.device, findings: Report, tmp_path: Path, budget: str, most: int
) -> None:
    work = replace(make_job(tmp_path, "BERT-base", gpu, best_precision(gpu), LONGEST, 8).work, trains=False)
    memory = open_memory(gpu, budget)
    tuning = tune_forwards(work, memory, gpu, most=most)
    row = {"budget": budget, "forwards": True, "probes": len(tuning.probes), "seconds": tuning.seconds}
    fit = {}
    for length in (LONGEST, 128, 64):
        number = tuning.capacity.num_examples(length)
        peak = memory.measure(lambda n=number, at=length: work.evaluate(n, at, gpu), tensors_of(work.model))
        fit[length] = peak is not None and peak <= memory.limit_bytes
        findings.add("capacity", **row, length=length, found=number, fits=fit[length])
    assert all(fit.values()), fit
    assert bool(tuning.probes) == (budget == "1GiB")
