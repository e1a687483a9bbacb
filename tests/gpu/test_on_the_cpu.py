"""What the tests of a GPU are made of, at tiny sizes on the CPU; and the report."""

import json
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from gpu_cases import (
    accelerator_on,
    count_waits,
    make_job,
    make_language_job,
    make_workload,
    materialise,
    measured_peaks,
    most_that_fit,
    plain_language_model,
    predicted,
    run_long,
)
from gpu_peers import examples_of, own_run
from gpu_report import Report, markdown
from gpu_windows import check_fp16, relative_difference, run_fp16, run_job_window, run_replayed, run_window

from hf_accum.device.memory import open_memory
from hf_accum.tuner.run_capacity import cutter_of
from hf_accum.tuner.search import tune

CPU = torch.device("cpu")


def test_a_report_has_what_was_found_and_on_what(tmp_path: Path) -> None:
    report = Report()
    report.add("memory", model="BERT", peak_bytes=3 * 2**20, ratio=1.0123456)
    report.add("memory", model="Llama, 1 B", why="full")
    report.ended("test_a.py::test_b", "failed", 1.234, "it did")
    report.write(tmp_path / "report.json", CPU)
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["tables"]["memory"][0] == {"model": "BERT", "peak_bytes": 3 * 2**20, "ratio": 1.0123456}
    assert found["tests"] == {"test_a.py::test_b": {"outcome": "failed", "seconds": 1.23, "why": "it did"}}
    assert {"device", "versions", "command", "date", "seconds"} <= set(found["header"])
    assert f"torch {torch.__version__}" in found["header"]["versions"]
    assert list(report.lines(CPU))[-5:] == [
        "memory:",
        "| model      | peak MiB | ratio | why  |",
        "| ---------- | -------- | ----- | ---- |",
        "| BERT       | 3.0      | 1.012 |      |",
        "| Llama, 1 B |          |       | full |",
    ]


def test_a_table_has_each_name_once() -> None:
    assert next(markdown([{"a": 1}, {"b": 2, "a": 3}])) == "| a | b |"


@pytest.mark.slow
def test_what_is_predicted_for_a_card(tmp_path: Path) -> None:
    sizes = [(3, 16), (1, 32)]
    flags = {"rank": 2, "max_length": 32}
    found = predicted(tmp_path, "tiny BERT", "bf16", (9, 0), flags, sizes)
    assert list(found) == sizes
    assert all(0 < of_tensors < reserved < 2**28 for of_tensors, reserved in found.values())


@pytest.mark.parametrize("size", [1, 3, 7])
def test_gradients(size: int) -> None:
    with accelerator_on(CPU) as accelerator:
        assert run_window(accelerator, "weights and smoothing", size).difference <= 1e-12


def test_replays(tmp_path: Path) -> None:
    job = make_job(tmp_path, "tiny BERT", CPU, "no", 16, 2)
    with accelerator_on(CPU) as accelerator:
        outcome = run_replayed(accelerator, "plain", 200)
        assert outcome.window.num_oom_replays == 1
        assert outcome.difference <= 1e-12
        assert len(outcome.allocated) == 2
        one, other = (run_job_window(job, accelerator, most, 8, 16) for most in (3, 8))
    assert other.window.num_micro_batches == 1
    assert relative_difference(one.gradients, other.gradients) <= 1e-5


def test_fp16(tmp_path: Path) -> None:
    """By a scaler of the CPU: the autocast is of GPUs."""
    with accelerator_on(CPU) as accelerator:
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)
        accelerator.native_amp = True
        AcceleratorState._shared_state["_mixed_precision"] = "fp16"
        run = run_fp16(accelerator, tmp_path, 8, is_autocast=False)
        accelerator.native_amp = False
    assert 0 <= check_fp16(run) < 8


@pytest.mark.parametrize(
    ("model", "quantization"), [("tiny ModernBERT", "none"), ("tiny Llama", "none"), ("tiny Llama", "nf4")]
)
def test_models_are_made_on_the_spot(tmp_path: Path, model: str, quantization: str) -> None:
    work = make_workload(tmp_path, model, "bf16", quantization=quantization, max_length=32, dropout=0.0)
    assert all(p.is_meta for p in work.model.parameters())
    materialise(work.model, CPU)
    assert not any(tensor.is_meta for tensor in (*work.model.parameters(), *work.model.buffers()))
    assert any(hasattr(p, "quant_state") for p in work.model.parameters()) == (quantization == "nf4")
    work.model.train()
    work.forward_backward(3, 32, CPU)
    gradients = [p.grad for p in work.model.parameters() if p.requires_grad]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    assert any(g is not None and g.any() for g in gradients)


def test_weights_are_the_same_in_each_type(tmp_path: Path) -> None:
    jobs = [make_job(tmp_path, "tiny BERT", CPU, "bf16", 16, 2, frozen_dtype=dtype) for dtype in ("float32", "auto")]
    plain, frozen = (dict(job.work.model.named_parameters()) for job in jobs)
    assert {p.dtype for p in frozen.values()} == {torch.bfloat16, torch.float32}
    assert all(torch.equal(plain[name].to(p.dtype), p) for name, p in frozen.items())


def test_brute_force() -> None:
    assert most_that_fit(lambda number: number <= 7, 5) == 7
    assert most_that_fit(lambda number: number <= 7, 7) == 7
    assert most_that_fit(lambda number: number <= 7, 9) == 7
    assert most_that_fit(lambda number: False, 2) == 0
    assert most_that_fit(lambda number: True, 40) == 50


@pytest.mark.slow
def test_long_runs_and_their_peak(tmp_path: Path) -> None:
    job = make_job(tmp_path, "tiny BERT", CPU, "bf16", 32, 60)
    tuning = tune(job.work, open_memory(CPU, "350KiB"), CPU, most=8)
    assert 1 <= tuning.capacity.num_examples(32) < 8
    assert tuning.prediction is not None
    predicted = tuning.prediction.needed_bytes(3, 32)
    allocated, reserved = measured_peaks(job.work, job.work.optimizer(job.work.model), 3, 32, CPU)
    assert allocated == reserved
    assert predicted == pytest.approx(allocated, rel=0.02)
    with accelerator_on(CPU, "bf16") as accelerator:
        run = run_long(job, accelerator, cutter_of(tuning, CPU), 8, 10)
    assert run.num_retries == [0] * 10
    assert run.num_replays == 0
    assert run.num_tokens >= 10 * 8 * 4


def test_this_loop_beside_its_peers(tmp_path: Path) -> None:
    """Of classes and of language; transformers' own Trainer takes seconds to import."""
    for make, model in ((make_job, "tiny BERT"), (make_language_job, "tiny Llama")):
        job = make(tmp_path, model, CPU, "no", 32, 17)
        run = own_run(job, "no", 4, 8)
        lengths = [e.length for e in examples_of(job)]
        assert min(lengths) * 16 <= run.num_tokens <= sum(lengths)
        assert run.microseconds_per_token > 0
    assert plain_language_model(tmp_path, "tiny Llama", CPU, "no")(torch.ones(2, 5).long()).logits.shape == (2, 5, 64)


def test_waits(tmp_path: Path) -> None:
    job = make_job(tmp_path, "tiny BERT", CPU, "no", 32, 60)
    with accelerator_on(CPU) as accelerator:
        waits = count_waits(job, accelerator, 4, 8, 4)
    assert (waits.num_waits, waits.where) == (0, {})
    assert waits.num_micro_batches == 4
