"""A recipe as a command."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from hf_accum.cli.exit import run
from hf_accum.cli.parser import parse
from hf_accum.config.recipe import RecipeConfig

C = TypeVar("C", bound=RecipeConfig)


def command(config_class: type[C], train: Callable[[C], object], description: str | None) -> Callable[..., None]:
    """The function that reads the flags of a recipe and trains: `main()`, or `main(arguments)`; with each seed.

    A user's mistake ends the process with one message and status 2, anything else with status 1.
    """

    def main(arguments: Sequence[str] | None = None) -> None:
        config: Any = parse(config_class, description or "", arguments)
        run(lambda: _train(train, config), config)

    return main


def _train(train: Callable[[Any], object], config: Any) -> object:
    if config.preview:  # which is the same for all seeds
        config = replace(config, num_seeds=1)
    if config.num_seeds == 1:
        return train(config)
    from hf_accum.run.seeds import train_seeds

    return train_seeds(train, config)
