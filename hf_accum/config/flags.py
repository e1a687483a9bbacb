"""Arguments in messages as the flags of the command line: `max_length` is --max_length there."""

import dataclasses
import re
from collections.abc import Collection
from typing import Any

from hf_accum.config.recipe import RecipeConfig

_QUOTED = re.compile(r"`(?P<name>[A-Za-z_][\w.]*)(?P<value> [^`\s]+)?`")


def as_flags(text: str, names: Collection[str]) -> str:
    """A message in which each argument in backticks is a flag: `name` as --name, `name value` as --name value.

    Messages also quote functions, commands and fields of the data, and repeat what other libraries say. No rule of
    form tells these from arguments, so that only those of `names` are changed: of a value, only one word.
    """

    def flag(quoted: re.Match[str]) -> str:
        is_known = quoted["name"] in names
        return f"--{quoted['name']}{quoted['value'] or ''}" if is_known else quoted[0]

    return _QUOTED.sub(flag, text)


def flag_names(config_class: type[RecipeConfig] = RecipeConfig) -> frozenset[str]:
    """The flags of a recipe, those of a group too: `lora.rank`.

    Those of the recipes derived from it that this process knows are among them: an error may come before, or
    without, a configuration. A process runs one recipe; a flag of another one is none here.
    """
    names = frozenset(_of(config_class))
    return names.union(*map(flag_names, config_class.__subclasses__()))


def _of(dataclass: Any, group: str = "") -> list[str]:
    names: list[str] = []
    for field in dataclasses.fields(dataclass):
        names.append(f"{group}{field.name}")
        if dataclasses.is_dataclass(field.type):
            names += _of(field.type, f"{group}{field.name}.")
    return names
