"""Pairs and templates through the recipe: trained, evaluated, saved, and gone on with after half of the steps."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from run_files import metrics_of
from safetensors.torch import load_file
from tiny import WORDS, make_pair_tokenizer, save_base
from transformers import AutoTokenizer

from recipes.clinical_classification import main


@pytest.mark.slow
@pytest.mark.usefixtures("accelerator")
def test_a_run_on_pairs_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    from accelerate.state import AcceleratorState, GradientState, PartialState

    draw = random.Random(0)
    rows = [
        {
            "age": draw.choice([None, 63]),
            "note": " ".join(draw.choices(WORDS, k=draw.randint(1, 12))),
            "question": " ".join(draw.choices(WORDS, k=draw.randint(1, 6))),
            "label": draw.choice(["no", "yes"]),
        }
        for _ in range(80)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain: dict[str, Any] = {
        "model": save_base(tmp_path / "model", "bert", make_pair_tokenizer()),
        "dataset": tmp_path / "rows.jsonl",
        "text_template": "{age} {note}",
        "on_missing_text": "empty",
        "text_pair_column": "question",
        "max_length": 14,
        "max_steps": 4,
        "save_every": 2,
        "effective_batch_size": 16,
        "full_determinism": True,
        "dropout": 0,
    }

    def run(name: str, **more: Any) -> Path:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        flags = plain | {"output_dir": tmp_path / name} | more
        main([f"--{flag}={value}" for flag, value in flags.items()])
        return tmp_path / name

    first = run("first", micro_batch_size=16)
    half = run("half", micro_batch_size=16, resume=first / "checkpoints" / "step-00000002")
    other_cut = run("other", micro_batch_size=3)
    digests = [line["window_digest"] for line in metrics_of(first)]
    assert [line["window_digest"] for line in metrics_of(half)] == digests[2:]
    assert [line["window_digest"] for line in metrics_of(other_cut)] == digests
    weights = [load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (first, half, other_cut)]
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name])
        torch.testing.assert_close(tensor, weights[2][name], rtol=1e-3, atol=1e-5)
    saved: Any = AutoTokenizer.from_pretrained(first / "adapter")
    assert saved("w1", "w2")["token_type_ids"] == [0, 0, 0, 1, 1]
