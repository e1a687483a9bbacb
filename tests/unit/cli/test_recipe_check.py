"""A recipe's own model, task and data, checked."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from every_recipe import RECIPES, Recipe
from recipe_configs import config_class_of
from tiny import WORDS, save_base

from hf_accum import recipe
from hf_accum.cli.handed_over import handed_over
from hf_accum.cli.main import main
from hf_accum.cli.recipe_check import _shortened
from hf_accum.cli.recipes import find_recipe
from hf_accum.config.recipe import RecipeConfig
from hf_accum.errors import UserError
from recipes.clinical_classification import ClinicalClassificationConfig

pytestmark = pytest.mark.usefixtures("no_network")


@pytest.mark.parametrize(
    ("recipe", "made_up"),
    [
        pytest.param(recipe, made_up, id=f"{recipe.id}-{made_up}", marks=[pytest.mark.slow] if slow else [])
        for place, recipe in enumerate(RECIPES)
        for made_up, slow in ((False, place > 0), (True, True))
        if not made_up or recipe.name in ("clinical_ner", "term_retrieval", "driving_images")
    ],
)
def test_every_recipe_has_no_fault(
    recipe: Recipe, made_up: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = recipe.make_flags(tmp_path, tmp_path / "run", dropout=0)
    if made_up:
        left_out = ("--dataset", "--prompt_column", "--response_column")
        flags = [*(flag for flag in flags if not flag.startswith(left_out)), "--made_up"]
    main(["check", recipe.name, *flags])
    output = capsys.readouterr().out
    assert "fault:" not in output
    assert "single examples" in output
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_windows_of_long_texts_are_checked_by_the_loss_that_they_are_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": " ".join(WORDS[: 5 + 3 * index]), "label": "ab"[index % 2]} for index in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = save_base(tmp_path / "base", "bert")
    flags = [f"--model={model}", f"--dataset={tmp_path / 'rows.jsonl'}", f"--output_dir={tmp_path / 'run'}"]
    flags += ["--max_length=16", "--long_texts=windows", "--window_overlap=4", "--dropout=0"]
    main(["check", "clinical_classification", *flags])
    output = capsys.readouterr().out
    assert "fault:" not in output
    assert "linear loss by the windows' outputs" in output


@pytest.mark.parametrize("long_texts", ["truncate", "windows"])
def test_rows_without_a_place_in_the_length_of_a_check_are_passed_over(long_texts: Any, tmp_path: Path) -> None:
    config = ClinicalClassificationConfig(long_texts=long_texts, max_length=512)
    shorter = _shortened(config, tmp_path)
    assert shorter.max_length < config.max_length
    assert (config.on_bad_row, shorter.on_bad_row) == ("error", "skip")


def test_the_package_is_as_it_was_and_a_recipe_without_training_is_refused(tmp_path: Path) -> None:
    config = RecipeConfig(output_dir=str(tmp_path / "run"))
    module: Any = ModuleType("mine")
    with pytest.raises(UserError, match="has to have a function"):
        handed_over(module, config)
    module.train = lambda config: None
    with pytest.raises(UserError, match="made no `Training`"):
        handed_over(module, config)
    assert recipe.Training.__name__ == "Training"
    assert config_class_of("clinical_ner").__name__ in vars(find_recipe("clinical_ner"))
