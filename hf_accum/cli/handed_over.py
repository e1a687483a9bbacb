"""A recipe's model, task and data without its training: what it hands to its `Training`, taken there."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.held_out import all_held_out
from hf_accum.distributed.launch import end_accelerator
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


_NO_TRAINING: dict[str, Any] = {
    "trackers": [],
    "resume": "never",
    "preview": False,
    "num_seeds": 1,
    "init_from": None,
}


@contextmanager
def opened(
    module: ModuleType, config: RecipeConfig, output: Path | None = None, *, all_rows: bool = False
) -> Iterator[Handed]:
    """What a recipe hands over, of flags without what only a training has; its run is ended afterwards.

    What is written goes to `output`, or to a folder that is not kept. With `all_rows` none is trained on, and all of
    them are there to evaluate on, however they would be split.

    Raises:
        UserError: as `handed_over` does.
    """
    with ExitStack() as stack:
        place = output or Path(stack.enter_context(TemporaryDirectory())) / "run"
        with all_held_out() if all_rows else nullcontext():
            handed = handed_over(module, replace(config, **_NO_TRAINING, output_dir=str(place)))
        stack.callback(end_accelerator, handed.run.accelerator)
        stack.callback(handed.run.claim.release)
        if config.init_from is not None:
            handed = replace(handed, spec=handed.spec.below_result())
        if all_rows:
            handed = replace(handed, data=replace(handed.data, eval_fraction=None, eval_source=handed.data.source))
        yield handed


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
