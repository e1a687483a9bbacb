"""A tiny model and dataset on disk, and the recipe run as a user runs it."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from recipes.embedded.models import minilm

WORDS = {
    "muscle": ["weakness", "atrophy", "hypotonia", "myopathy", "areflexia"],
    "heart": ["arrhythmia", "cardiomyopathy", "syncope", "murmur", "hypertension"],
    "eye": ["nystagmus", "cataract", "myopia", "glaucoma", "ptosis"],
}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers with MiniLM's tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 short notes of three classes, of uneven length, in three files of uneven size."""
    folder = tmp_path_factory.mktemp("notes")
    draw = random.Random(0)
    rows = []
    for number in range(150):
        label = draw.choice(list(WORDS))
        noise = [word for words in WORDS.values() for word in words]
        words = draw.choices(WORDS[label], k=draw.randint(2, 12)) + draw.choices(noise, k=draw.randint(0, 4))
        rows.append({"text": "; ".join(words), "label": label, "patient": number // 2})
    for number, (start, end) in enumerate([(0, 90), (90, 100), (100, 150)]):
        lines = [json.dumps(row) + "\n" for row in rows[start:end]]
        (folder / f"train-{number}.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture
def recipe(
    tiny_model: Path, notes: Path, tmp_path: Path, accelerator: object, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Run the classification recipe in this process; returns the run's folder."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    from recipes.clinical_classification import main

    runs = iter(range(1_000))
    monkeypatch.chdir(tmp_path)

    def run(*flags: str, **named: Any) -> Path:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        folder = tmp_path / f"run-{next(runs)}"
        defaults = {
            "model": tiny_model,
            "dataset": notes,
            "output_dir": folder,
            "max_length": 64,
            "micro_batch_size": 8,
            "num_epochs": 1,
        } | named
        main([*flags, *(f"--{name}={value}" for name, value in defaults.items())])
        return Path(str(defaults["output_dir"]))

    return run
