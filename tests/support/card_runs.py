"""Folders of runs that are through, with made-up facts."""

import json
from pathlib import Path
from typing import Any

import yaml

from hf_accum.models.usage import Usage, write_usage

RUN = {
    "recipe": "recipes.clinical_classification",
    "dataset": "embedded:icd",
    "num_train": 6650,
    "num_held_out": 1483,
    "num_trained_parameters": 683925,
    "num_parameters": 23405226,
    "num_ranks": 2,
    "device": "NVIDIA T4",
    "precision": "bf16",
    "num_steps": 3,
    "versions": {"torch": "2.13.0", "peft": "0.21.2"},
    "notes": ["label 'a text of a patient' is rare"],
}
FIGURES = {
    "step": 3,
    "num_examples": 60,
    "loss": 2.5,
    "accuracy": 0.75,
    "macro_f1": None,
    "confidence_intervals": {"accuracy": [0.5, 0.875], "loss": None},
    "bootstrap": {"level": 0.95, "num_groups": 17, "num_resamples": 1000},
    "notes": ["never predicted: a text of a patient"],
}
CONFIG = {"effective_batch_size": 32, "group_column": "patient", "eval_fraction": 0.1, "quantization": "nf4"}
CONFIG |= {"lora": {"rank": 16, "alpha": 32.0, "target_modules": "all-linear"}}


def make_run(folder: Path, config: dict[str, Any] | None = None, base: dict[str, Any] | None = None) -> Path:
    adapter = folder / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "config.json").write_text(json.dumps({"id2label": {"0": "1", "1": "2"}}))
    how: dict[str, Any] = {"problem": "single_label_classification", "label_codes": {"7": "2"}}
    usage = Usage(task="text-classification", auto_class="AutoModelForSequenceClassification", base=base, **how)
    write_usage(usage, adapter)
    (folder / "run.json").write_text(json.dumps(RUN))
    (folder / "evaluation.json").write_text(json.dumps(FIGURES))
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG | (config or {})))
    return folder
