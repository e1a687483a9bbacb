"""A run's last evaluation of texts: the same figures on any number of ranks, with intervals and files."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from thread_ranks import run_ranks
from tiny import make_tokenizer
from torch import nn

from hf_accum.accumulation.capacity import Capacity, WorkingCapacity
from hf_accum.accumulation.example import Origin
from hf_accum.accumulation.splitting import Cutter
from hf_accum.data.source import Source
from hf_accum.data.stream import WindowStream
from hf_accum.distributed.ranks import Ranks
from hf_accum.tasks.labels import LabelColumn, Problem
from hf_accum.tasks.text_classification.task import TextClassification, build_objective

ROWS = [
    {"text": " ".join(["w1"] * (n % 5 + 1)), "one": "abc"[n % 3], "several": ["ab"[n % 2]], "number": n / 7}
    for n in range(24)
]
COLUMNS: dict[Problem, str] = {
    "single_label_classification": "one",
    "multi_label_classification": "several",
    "regression": "number",
}


class ByLength(nn.Module):
    """Logits by the number of tokens."""

    def __init__(self, num_logits: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(-1, 1, num_logits))

    def forward(self, input_ids: Any, attention_mask: Any = None, **_: Any) -> Any:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return SimpleNamespace(logits=(mask.sum(1, keepdim=True) - 5) * self.scale)


@pytest.mark.parametrize("problem", list(COLUMNS))
def test_the_last_evaluation(problem: Problem, tmp_path: Path) -> None:
    names = () if problem == "regression" else ("a", "b", "c")
    labels = LabelColumn(COLUMNS[problem], problem, names)
    task = TextClassification("text", labels, build_objective(labels), make_tokenizer(), 16)
    source = Source(("f.jsonl",), lambda _, start: iter(list(enumerate(ROWS))[start:]), {})

    def work(ranks: Ranks, folder: Path | None) -> dict[str, Any]:
        def encode(rows: Any) -> Any:
            return [
                replace(example, origin=Origin(row, int(name.split(":")[1]) // 2))
                for example, (name, row) in zip(task.encode(rows), rows, strict=True)
            ]

        stream = WindowStream(source, task.prepare, encode, ranks=ranks, effective_batch_size=5, seed=0)
        cutter = Cutter(WorkingCapacity(Capacity(3)))
        return task.evaluate(ByLength(len(names) or 1), stream, ranks=ranks, cutter=cutter, folder=folder)

    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        plain = run_ranks(number, lambda ranks: work(ranks, None))[0]
        assert not list(folder.iterdir())
        (figures, *others) = run_ranks(number, lambda ranks, folder=folder: work(ranks, folder))
        assert all(other == figures for other in others)
        assert figures["bootstrap"]["num_groups"] == 12
        assert figures["loss"] == pytest.approx(plain["loss"])
        low, high = figures["confidence_intervals"]["loss"]
        assert low < figures["loss"] < high
        lines = [json.loads(line) for line in (folder / "errors.jsonl").read_text().splitlines()]
        losses = [line["loss"] for line in lines]
        assert losses == sorted(losses, reverse=True)
        weight = 3 if problem == "multi_label_classification" else 1
        assert np.mean(losses) / weight == pytest.approx(figures["loss"], abs=1e-5)
        assert all(line["text"] == ROWS[int(line["id"].split(":")[1]) - 1]["text"] for line in lines)
    first, second = (tmp_path / name / "predictions.jsonl" for name in "12")
    assert first.read_text() == second.read_text()
