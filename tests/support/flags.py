"""Configurations that are refused, and what is said of them."""

import re
from typing import Any

import pytest

from hf_accum.config.lora import LoraConfig
from hf_accum.config.recipe import RecipeConfig
from hf_accum.errors import UserError
from recipes.clinical_classification import ClinicalClassificationConfig

Refused = tuple[dict[str, Any], str, str]
"""What is given, the flag that is refused for it, and the rule that is said."""


def construct(config_class: type[RecipeConfig], values: dict[str, Any]) -> RecipeConfig:
    lora: dict[str, Any] = {"lora": LoraConfig(**values["lora"])} if "lora" in values else {}
    return config_class(**(values | lora))


def check_refused(refused: Refused, *config_classes: type[RecipeConfig], shown: str | None = None) -> None:
    """Check that the message names the flag, its value and the rule, of the shared flags and of a recipe's."""
    values, flag, rule = refused
    value: Any = values
    for part in flag.split("."):
        value = value[part]
    if shown is None:
        shown = "''" if value == "" and "." not in flag else str(value)
    said = f"`{flag}` {shown}: has to be {rule}"
    for config_class in config_classes or (RecipeConfig, ClinicalClassificationConfig):
        with pytest.raises(UserError, match=f"^{re.escape(said)}"):
            construct(config_class, values)
