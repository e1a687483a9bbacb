"""Reading what a run wrote, with nothing of this project."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from plain_peft import load_adapter
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def logits_of(folder: Path, texts: Sequence[str], num_labels: int, max_length: int = 64) -> torch.Tensor:
    """Logits of the adapter of a run, or of a checkpoint of it, loaded by peft alone."""
    adapter = str(folder / "adapter")
    config = next(path for path in (folder, *folder.parents) if (path / "config.yaml").exists()) / "config.yaml"
    base = yaml.safe_load(config.read_text())["model"]
    model = load_adapter(AutoModelForSequenceClassification, adapter, base)
    assert model.config.num_labels == num_labels
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    inputs = tokenizer(list(texts), padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.inference_mode():
        return model(**inputs).logits
