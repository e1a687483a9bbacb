"""What a trace and a model of the allocator predict without a device, against what the device's allocator holds."""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_cases import best_precision, make_workload, materialise, measured_peaks, predicted
from gpu_report import Report

MOST_ABOVE = 0.016
TOKENS_AT_ONCE = 4096
LENGTHS = {"BERT-base": (64, 128, 256, 384, 512), "ModernBERT-base": (64, 128, 256, 512, 1024)}
LENGTHS["Llama 1 B"] = LENGTHS["ModernBERT-base"]


@dataclass(frozen=True)
class Case:
    """A model, and how it is trained."""

    model: str
    way: str
    checkpointing: bool
    dropout: float

    @property
    def flags(self) -> dict[str, Any]:
        return {
            "rank": 0 if self.way == "full" else 16,
            "quantization": "nf4" if self.way == "qlora" else "none",
            "gradient_checkpointing": self.checkpointing,
            "dropout": self.dropout,
            "max_length": LENGTHS[self.model][-1],
        }


Predicted = dict[tuple[int, int], tuple[int, int]]


def sizes_of(model: str) -> list[tuple[int, int]]:
    """Micro-batches of about as many tokens."""
    return [(max(1, TOKENS_AT_ONCE // length), length) for length in LENGTHS[model]]


WAYS = (
    ("BERT-base", "full", False),
    ("BERT-base", "lora", False),
    ("BERT-base", "lora", True),
    ("ModernBERT-base", "lora", False),
    ("ModernBERT-base", "lora", True),
    ("Llama 1 B", "lora", False),
    ("Llama 1 B", "lora", True),
    ("Llama 1 B", "qlora", False),
    ("Llama 1 B", "qlora", True),
)


@pytest.fixture(scope="module")
def predictions(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Case, Future[Predicted]]]:
    """Of the tests that were chosen, traced on the CPU's cores meanwhile."""
    if not torch.cuda.is_available() or hasattr(request.config, "workerinput"):
        yield {}  # all are skipped
        return
    precision, capability = best_precision(torch.device("cuda", 0)), torch.cuda.get_device_capability(0)
    chosen = [item for item in request.session.items if item.path == request.path]
    parameters: list[dict[str, Any]] = [dict(i.callspec.params) for i in chosen if isinstance(i, pytest.Function)]
    cases = [Case(**of_test) for of_test in parameters]
    folders = {case: tmp_path_factory.mktemp("traced") for case in cases}
    num_processes = min(8, os.cpu_count() or 1, len(cases))
    with ProcessPoolExecutor(num_processes, mp_context=get_context("spawn")) as pool:
        yield {
            case: pool.submit(predicted, folder, case.model, precision, capability, case.flags, sizes_of(case.model))
            for case, folder in folders.items()
        }
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(("model", "way", "checkpointing"), WAYS)
def test_what_is_predicted_is_what_is_reserved_and_hardly_more(
    gpu: torch.device,
    findings: Report,
    tmp_path: Path,
    predictions: dict[Case, Future[Predicted]],
    model: str,
    way: str,
    checkpointing: bool,
    dropout: float,
) -> None:
    if way == "qlora":
        pytest.importorskip("bitsandbytes")
    case = Case(model, way, checkpointing, dropout)
    prediction = predictions[case].result()
    work = make_workload(tmp_path, model, best_precision(gpu), **case.flags)
    materialise(work.model, gpu)
    work.model.train()
    optimizer = work.optimizer(work.model)
    missed = []
    for num_examples, length in sizes_of(model):
        row = asdict(case) | {"length": length, "examples": num_examples}
        row["predicted_tensor_bytes"], row["predicted_bytes"] = prediction[num_examples, length]
        bytes_predicted = row["predicted_bytes"]
        try:
            allocated, reserved = measured_peaks(work, optimizer, num_examples, length, gpu)
        except torch.OutOfMemoryError:  # a card too small for this row
            findings.add("memory", **row, allocated_bytes="does not fit")
            work.model.zero_grad()
            continue
        ratio = bytes_predicted / reserved
        findings.add("memory", **row, allocated_bytes=allocated, reserved_bytes=reserved, ratio=ratio)
        if not 1 <= ratio <= 1 + MOST_ABOVE:
            missed.append(f"{num_examples} x {length}: {ratio:.4f}")
    assert missed == [], "predicted / reserved"
