"""Recipes by their names."""

from types import ModuleType
from typing import Any

import pytest

from hf_accum.cli.recipes import config_class_of, find_recipe
from hf_accum.errors import UserError
from recipes import clinical_ner


def test_a_recipe_is_found_by_its_short_name_and_by_its_module() -> None:
    assert find_recipe("clinical_ner") is find_recipe("recipes.clinical_ner") is clinical_ner
    assert config_class_of(clinical_ner, "clinical_ner") is clinical_ner.ClinicalNerConfig


def test_what_is_no_recipe_is_refused() -> None:
    for name in ("none", "json", "../recipes"):
        with pytest.raises(UserError, match="no recipe of that name"):
            find_recipe(name)
    module: Any = ModuleType("mine")
    module.workload = lambda config: None
    with pytest.raises(UserError, match="has to say which RecipeConfig"):
        config_class_of(module, "mine")
