"""A run's folder, as the commands that come after a training take it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_accum.cli.parser import parse
from hf_accum.cli.recipes import config_class_of, find_recipe
from hf_accum.errors import UserError

if TYPE_CHECKING:
    from types import ModuleType

    from hf_accum.config.recipe import RecipeConfig
    from hf_accum.run.finished import FinishedRun


def recipe_of(
    folder: Path, recipe: str | None = None, flags: Sequence[str] = ()
) -> "tuple[ModuleType, RecipeConfig]":
    """The recipe that a run was made by (or the one of that name), and the run's flags, with some that are others.

    Raises:
        UserError: if the folder is not that of a run, or its recipe is not to be found.
    """
    from hf_accum.run.facts import read_facts

    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: has to be the folder of a run (it has no config.yaml)")
    name = recipe or read_facts(folder).get("recipe")
    if name is None:
        raise UserError(f"{folder}: does not say by which recipe it was made: name it by --recipe")
    module = find_recipe(name)
    return module, parse(config_class_of(module, name), "", [f"--config={folder / 'config.yaml'}", *flags])


def open_run(folder: str, recipe: str | None = None) -> "FinishedRun":
    """A run that is through, with its task and model, ready to be loaded.

    Raises:
        UserError: as `recipe_of` and `finished_run` do; if its recipe has no function `restored`.
    """
    from hf_accum.run.finished import finished_run

    path = Path(folder).expanduser().resolve()
    module, config = recipe_of(path, recipe)
    if not hasattr(module, "restored"):
        raise UserError(f"{module.__name__}: has to have a function `restored(config)` for what comes after training")
    return finished_run(path, config, module.restored)
