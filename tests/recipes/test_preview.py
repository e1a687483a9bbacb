"""`--preview` of every recipe: three rows, status 0, no weights read, no folder made."""

import importlib
from pathlib import Path

import pytest
from every_recipe import RECIPES, Recipe

from hf_accum.run import training

EXPECTED = {
    "clinical_classification": ("text", "label"),
    "medical_mlm": ("text", "learned"),
    "medical_lm": ("read", "learned"),
    "clinical_ner": ("text", "words"),
    "term_retrieval": ("query", "document"),
    "driving_images-classification": ("image", "augmented", "label"),
    "driving_images-segmentation": ("image", "augmented", "mask"),
}


@pytest.mark.slow
@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.id)
def test_three_rows_are_shown_and_nothing_else_is_done(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()

    def load(*_: object, **__: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(training, "load_trainable", load)
    flags = recipe.make_flags(tmp_path, tmp_path / "run")
    before = set(tmp_path.iterdir())
    importlib.import_module(f"recipes.{recipe.name}").main([*flags, "--preview"])  # which ends with status 0
    assert set(tmp_path.iterdir()) == before
    said = capsys.readouterr().out
    assert said.count(", row ") == 3
    for name in EXPECTED[recipe.id]:
        assert said.count(f"\n  {name:10} ") >= 3
