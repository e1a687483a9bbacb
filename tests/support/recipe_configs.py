"""The configuration class of a recipe, by the recipe's name."""

import importlib

from hf_accum.config.recipe import RecipeConfig


def config_class_of(recipe: str) -> type[RecipeConfig]:
    """The one that the recipe's own module defines."""
    module = importlib.import_module(f"recipes.{recipe}")
    (config_class,) = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, RecipeConfig) and value.__module__ == module.__name__
    ]
    return config_class
