"""Experts that take so many tokens and leave out the rest, which may depend on the whole micro-batch: set for a look.

Few short texts stay below such a capacity, and say nothing of it. With a capacity of one token they do not.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_FIELD = "expert_capacity"  # of transformers' routers and configs
UNLIMITED, LOWEST = 10**9, 1


def routers(model: nn.Module) -> dict[str, nn.Module]:
    """Modules whose experts take a given number of tokens, by their names."""
    return {name: module for name, module in model.named_modules() if _number(module) is not None}


def lowest_capacity(model: nn.Module) -> int:
    """Tokens that an expert takes, of those routers where it takes the fewest."""
    return min(number for router in routers(model).values() if (number := _number(router)) is not None)


def named(model: nn.Module) -> str:
    """What limits them, in words: the field of the config where there is one."""
    name, router = next(iter(routers(model).items()))
    where = f"of layer {name} ({type(router).__name__})"
    if hasattr(getattr(model, "config", None), _FIELD):
        where = f"of its config, in layer {name} ({type(router).__name__})"
    return f"`{_FIELD}` {lowest_capacity(model)} {where}"


@contextmanager
def capacity_of(model: nn.Module, number: int) -> Iterator[None]:
    """Inside each expert takes at most that many tokens."""
    before = [(router, vars(router)[_FIELD]) for router in routers(model).values()]
    try:
        for router, _ in before:
            setattr(router, _FIELD, number)
        yield
    finally:
        for router, was in before:
            setattr(router, _FIELD, was)


def _number(module: nn.Module) -> int | None:
    value = vars(module).get(_FIELD)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
