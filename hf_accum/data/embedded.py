"""The datasets that a recipe brings, by name: `dataset embedded:NAME`; the first of them is its default."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from hf_accum.config.datasets import Datasets, Part, parts_of
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


def with_dataset(config: C, ranks: Ranks, embedded: Mapping[str, Embedded]) -> tuple[C, Datasets]:
    """The flags of the data with those of an embedded dataset among them, where one is meant; and where the data is.

    Of several datasets those that are embedded decide what the flags are for all of them. A collective.

    Raises:
        UserError: if there is none of that name, or several want a flag to be different things.
    """
    dataset = config.dataset
    if dataset is None:
        dataset = PREFIX + next(iter(embedded))
    parts = parts_of(dataset)
    chosen = {part.name: _named(part.name, embedded) for part in parts if part.name.startswith(PREFIX)}
    if not chosen:
        return config, dataset
    flags = {
        flag: value for flag, value in _common_flags(chosen, len(parts)).items() if getattr(config, flag) is None
    }
    for flag, value in flags.items():
        if isinstance(value, _Differing):
            raise UserError(f"`{flag}`: has to be given, since the datasets have {value}; mixed ones have the same")
    folders = {name: on_all_ranks(ranks, one.make)[ranks.index] for name, one in chosen.items()}
    if len(parts) == 1:
        (folder,) = folders.values()
        return replace(config, **flags, dataset=dataset), folder
    located = tuple(Part(part.name, folders.get(part.name, part.location), part.weight) for part in parts)
    return replace(config, **flags), located


class _Differing(str):
    """What a flag is with each of several datasets."""


def _named(dataset: str, embedded: Mapping[str, Embedded]) -> Embedded:
    name = dataset.removeprefix(PREFIX)
    if name not in embedded:
        raise UserError(f"`dataset` {dataset}: has to be one of {', '.join(PREFIX + known for known in embedded)}")
    return embedded[name]


def _common_flags(chosen: Mapping[str, Embedded], num_datasets: int) -> dict[str, Any]:
    """The flags of the embedded datasets. A split to evaluate on is taken if all datasets have it, else held out."""
    flags: dict[str, Any] = {}
    for flag in dict.fromkeys(flag for one in chosen.values() for flag in one.flags):
        values = {name: one.flags[flag] for name, one in chosen.items() if flag in one.flags}
        if len(set(map(str, values.values()))) == 1:
            if flag != "eval_split" or len(values) == num_datasets:
                flags[flag] = next(iter(values.values()))
        elif flag != "eval_split":
            flags[flag] = _Differing(", ".join(f"{value} in {name}" for name, value in values.items()))
    return flags
