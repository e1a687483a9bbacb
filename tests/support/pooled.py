"""Tiny classifiers on pooled states."""

from pathlib import Path
from typing import Any

from hf_accum.config.long_texts import TextWindows
from hf_accum.models.loading import Pretrained, load_model
from hf_accum.models.pooled_classifier import AutoPooledClassifier, StatePooling
from hf_accum.models.tokenizers import load_tokenizer

LABELS: dict[str, Any] = {"id2label": dict(enumerate("abc")), "label2id": {"a": 0, "b": 1, "c": 2}}


def load_pooled(folder: Path | str, pooling: StatePooling = "mean", windows: TextWindows | None = None) -> Pretrained:
    kind, tokenizer = AutoPooledClassifier(pooling, windows), load_tokenizer(str(folder))
    return load_model(kind, str(folder), tokenizer, max_length=8, task_type="SEQ_CLS", **LABELS)
