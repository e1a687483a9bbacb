"""Recipes by their names, and the flags that they take."""

import importlib
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from hf_accum.cli.parser import parse
from hf_accum.config.recipe import RecipeConfig
from hf_accum.errors import UserError
from hf_accum.run.result import check_run, read_facts


def find_recipe(name: str) -> ModuleType:
    """A module of recipes, or any that has a function `workload(config)`, also in the current folder.

    Raises:
        UserError: if there is none of that name.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # a recipe of one's own
    is_module = all(part.isidentifier() for part in name.split("."))
    for path in (name, f"recipes.{name}") if is_module else ():
        try:
            module = importlib.import_module(path)
        except ModuleNotFoundError as error:
            if error.name is None or not (path == error.name or path.startswith(f"{error.name}.")):
                raise
            continue
        if hasattr(module, "workload"):
            return module
    raise UserError(f"{name}: no recipe of that name, nor a module with a function `workload(config)`")


def config_class_of(module: ModuleType, name: str) -> type[RecipeConfig]:
    """The class of a recipe's flags, as its `workload` says.

    Raises:
        UserError: if it says none.
    """
    parameters = list(inspect.signature(module.workload).parameters.values())
    config_class = parameters[0].annotation if parameters else None
    if isinstance(config_class, str):
        config_class = getattr(module, config_class, None)
    if not (isinstance(config_class, type) and issubclass(config_class, RecipeConfig)):
        raise UserError(f"{name}: its function `workload(config)` has to say which RecipeConfig it takes")
    return config_class


def recipe_of(
    folder: Path, recipe: str | None = None, flags: Sequence[str] = (), own: Sequence[str] = ()
) -> tuple[ModuleType, RecipeConfig]:
    """The recipe that a run was made by (or the one of that name), and the run's flags, with some that are others.

    A flag that there is not may be one of the command's `own`, misspelt.

    Raises:
        UserError: if the folder is not that of a run, or its recipe is not to be found.
    """
    check_run(folder)
    name = recipe or read_facts(folder).get("recipe")
    if name is None:
        raise UserError(f"{folder}: does not say by which recipe it was made: name it by --recipe")
    module = find_recipe(name)
    of_run = f"--config={folder / 'config.yaml'}"
    return module, parse(config_class_of(module, name), "", [of_run, *flags], own)
