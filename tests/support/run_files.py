"""Reading what a run wrote, with nothing of this project."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoTokenizer


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def logits_of(folder: Path, texts: Sequence[str], num_labels: int, max_length: int = 64) -> torch.Tensor:
    """Logits of the run's adapter, loaded by peft alone."""
    adapter = str(folder / "adapter")
    model = AutoPeftModelForSequenceClassification.from_pretrained(adapter, num_labels=num_labels).eval()
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    inputs = tokenizer(list(texts), padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.inference_mode():
        return model(**inputs).logits
