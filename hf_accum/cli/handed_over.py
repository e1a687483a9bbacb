"""A recipe's model, task and data without its training: what it hands to its `Training`, taken there."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from hf_accum.config.recipe import RecipeConfig
from hf_accum.errors import UserError
from hf_accum.run import training


@dataclass(frozen=True)
class Handed:
    """What a recipe hands to its `Training`."""

    run: Any
    config: RecipeConfig
    data: Any
    task: Any
    spec: Any
    processor: Any
    draw: Any = None


class _Taken(BaseException):  # no `except Exception` of a recipe stops it
    def __init__(self, handed: Handed) -> None:
        self.handed = handed


def handed_over(module: ModuleType, config: RecipeConfig) -> Handed:
    """Run a recipe's `train(config)` up to where it makes its `Training`.

    Raises:
        UserError: if it makes none, or as what it does before.
    """
    train = getattr(module, "train", None)
    if train is None:
        raise UserError(f"{module.__name__}: has to have a function `train(config)`")
    try:
        with _taking(module):
            train(config)
    except _Taken as taken:
        return taken.handed
    raise UserError(f"{module.__name__}: its `train` made no `Training`, whose model and data are wanted")


@contextmanager
def _taking(module: ModuleType) -> Iterator[None]:
    """Inside, `Training` gives what it is given to `handed_over`."""

    def take(**given: Any) -> None:
        raise _Taken(Handed(**given))

    places = [vars(training), *([vars(module)] if "Training" in vars(module) else [])]
    before = [place["Training"] for place in places]
    for place in places:
        place["Training"] = take
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place["Training"] = value
