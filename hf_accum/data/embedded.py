"""The datasets that a recipe brings, by name: `dataset embedded:NAME`; the first of them is its default."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from hf_accum.config.recipe import RecipeConfig
from hf_accum.distributed.collectives import on_all_ranks
from hf_accum.distributed.ranks import Ranks
from hf_accum.errors import UserError

C = TypeVar("C", bound=RecipeConfig)
PREFIX = "embedded:"


@dataclass(frozen=True)
class Embedded:
    """A dataset that `make` makes where it is not there yet, returning its folder.

    `flags` are what the flags of that name are with it, where they are not given: its columns, its split, what it
    is learned well by.
    """

    make: Callable[[], str]
    flags: Mapping[str, Any]


def with_dataset(config: C, ranks: Ranks, embedded: Mapping[str, Embedded]) -> tuple[C, str]:
    """The flags of the data with those of an embedded dataset among them, where one is meant; and where the data is.

    A collective.

    Raises:
        UserError: if there is none of that name.
    """
    dataset = config.dataset
    if dataset is None:
        dataset = PREFIX + next(iter(embedded))
    if not dataset.startswith(PREFIX):
        return config, dataset
    name = dataset.removeprefix(PREFIX)
    if name not in embedded:
        raise UserError(f"`dataset` {dataset}: has to be one of {', '.join(PREFIX + known for known in embedded)}")
    chosen = embedded[name]
    flags = {flag: value for flag, value in chosen.flags.items() if getattr(config, flag) is None}
    folder = on_all_ranks(ranks, chosen.make)[ranks.index]
    return replace(config, **flags, dataset=dataset), folder
