"""A task's forward stands in one place: who changes it there changes the loop, the trace, the probes and the plan."""

import importlib
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from every_recipe import RECIPES, Recipe
from torch import Tensor, nn
from workload_cases import peak_of_training

from hf_accum.tasks.text_classification.task import TextClassification
from hf_accum.tuner.prediction import predict

CPU = torch.device("cpu")


def config_of(recipe: Recipe, folder: Path) -> tuple[Any, Any]:
    """The recipe's module, and its configuration on a tiny model with all weights trained."""
    from hf_accum.cli.parser import parse

    module = importlib.import_module(f"recipes.{recipe.name}")
    config_class = next(
        value
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__ and value.__name__.endswith("Config")
    )
    flags = recipe.make_flags(folder, folder / "run", **{"lora.rank": 0, "dropout": 0})
    return module, parse(config_class, "", flags)


SOME = ("clinical_classification", "medical_mlm")  # the others take as long each


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(r, id=r.id, marks=[] if r.id in SOME else pytest.mark.slow) for r in RECIPES],
)
def test_a_forward_that_is_changed_in_one_place_changes_the_prediction(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two forwards in the place of one: the plan predicts what real tensors take, before and after the change."""
    module, config = config_of(recipe, tmp_path)
    task: Any = recipe.task
    num_examples = 4

    def check() -> int:
        work = module.workload(config)
        predicted = predict(work).needed_bytes(num_examples, work.max_length)
        model: Any = work.model
        model.to_empty(device=CPU)
        if hasattr(model, "tie_weights"):
            model.tie_weights()
        with torch.no_grad():
            for tensor in (*work.model.parameters(), *work.model.buffers()):
                tensor.zero_()
        measured = peak_of_training(work, num_examples, work.max_length)
        assert 1.0 <= predicted / measured <= 1.1
        return predicted

    once = check()
    summed_loss = task.summed_loss

    def twice(self: Any, model: nn.Module, batch: Any) -> Tensor:
        return summed_loss(self, model, batch) + summed_loss(self, model, batch)

    monkeypatch.setattr(task, "summed_loss", twice)
    assert check() > 1.1 * once


def test_the_loop_the_trace_and_the_probes_call_the_same_forward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accelerator: object
) -> None:
    recipe = RECIPES[0]
    summed_loss = TextClassification.summed_loss
    callers: Counter[str] = Counter()

    def watched(self: Any, model: nn.Module, batch: Any) -> Tensor:
        frame = sys._getframe()
        names = set()
        while frame.f_back is not None:
            frame = frame.f_back
            names.add(Path(frame.f_code.co_filename).stem)
        callers.update(names & {"tracing", "probes", "clinical_classification"})
        return summed_loss(self, model, batch)

    monkeypatch.setattr(TextClassification, "summed_loss", watched)
    module = importlib.import_module(f"recipes.{recipe.name}")
    module.main(recipe.make_flags(tmp_path, tmp_path / "run", micro_batch_size="auto", max_steps=2))
    assert callers["tracing"] > 0
    assert callers["probes"] > 0
    inside = callers["tracing"] + callers["probes"]
    assert callers["clinical_classification"] >= inside + 2  # the recipe is below them all, and trains two steps
