"""A recipe's command line: a YAML file by `--config`, then flags on top."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, get_type_hints

from hf_accum.cli.unknown_flags import hints
from hf_accum.config.flags import as_flags, flag_names
from hf_accum.config.recipe import RecipeConfig, flags_by_heading
from hf_accum.config.serialization import to_yaml
from hf_accum.config.validation import without_secrets
from hf_accum.errors import UserError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

GONE = {"fast_kernels": "the kernels that it chose are gone, and peft's and torch's are used"}
"""Flags of earlier versions, and why they are gone."""

C = TypeVar("C", bound=RecipeConfig)


def parse(
    config_class: type[C], description: str, arguments: Sequence[str] | None = None, own: Sequence[str] = ()
) -> C:
    """A recipe's configuration from the command line.

    A switch (a flag of true or false) may stand alone: `--debug`. `--help` and `--print_config` need no torch. A
    value that is not allowed ends the process with status 2 and a message that says which, and why. Where a flag is
    unknown, one of a command's `own` may have been meant too.
    """
    parser = _parser(config_class, description, own)
    names = [field.name for field in dataclasses.fields(config_class)]
    types = get_type_hints(config_class)
    switches = {f"--{name}" for name in names if types[name] is bool}
    given = with_values(sys.argv[1:] if arguments is None else arguments, switches)
    try:
        check_gone(given, names)
        check_config_files(given, names)
        values = vars(parser.instantiate(parser.parse_args(given)))
        return config_class(**{name: values[name] for name in names})
    except ValueError as error:
        parser.error(str(error))


def _parser(config_class: type[RecipeConfig], description: str, own: Sequence[str]) -> "ArgumentParser":
    """A parser of a recipe's flags, which `--help` shows below headings."""
    from jsonargparse import ArgumentParser, set_dumper, set_parsing_settings

    class Parser(ArgumentParser):
        """Tells of flags in its messages, and no secret: they repeat what was given."""

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            """End the process with a message, without the usage: that of all flags hides it."""
            names = flag_names(config_class)
            lines = [f"error: {without_secrets(as_flags(message, names))}", *hints(message, [*names, *own])]
            self.exit(2, "\n".join([*lines, "(--help lists all flags)"]) + "\n")

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    set_dumper("yaml", to_yaml)
    parser = Parser(prog=Path(sys.argv[0]).name, description=description, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the flags below.")
    headings = flags_by_heading(config_class)
    every: set[str | int] = {name for names in headings.values() for name in names}
    for heading, names in headings.items():
        # All arguments are those of the recipe's own class, which may have its own defaults and help.
        group: Any = parser.add_argument_group(heading)
        group.add_class_arguments(config_class, as_group=False, skip=every.difference(names))
    # jsonargparse has made a group of the nested flags, with their help as the heading.
    assert parser.groups is not None
    lora = parser.groups["lora"]
    lora.title, lora.description = "LoRA", f"{lora.title}."
    return parser


def check_gone(arguments: Sequence[str], names: Sequence[str]) -> None:
    """Refuse flags of earlier versions, unless the recipe has one of that name.

    Raises:
        UserError: saying why the flag is gone.
    """
    for argument in arguments:
        flag = argument.split("=")[0]
        if (name := flag.removeprefix("--")) != flag and name in GONE and name not in names:
            raise UserError(f"{flag}: has to be left out: {GONE[name]}")


def check_config_files(arguments: Sequence[str], names: Sequence[str]) -> None:
    """Refuse YAML files for whose content the parser has no clear message.

    Raises:
        UserError: if a file of `--config` is not UTF-8, no mapping of flags, or has a flag that is gone.
    """
    import yaml

    for argument, after in zip(arguments, [*arguments[1:], ""], strict=False):
        file = after if argument == "--config" else argument.removeprefix("--config=")
        if file == argument or not os.path.isfile(file):
            continue
        try:
            values = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise UserError(f"--config {file}: has to be UTF-8 ({error})") from error
        except (OSError, yaml.YAMLError, ValueError, RecursionError):
            continue  # the parser says what is wrong
        if not isinstance(values, dict):
            raise UserError(f"--config {file}: has to hold flags, as `max_steps: 100`, one a line")
        for name in GONE.keys() & values.keys() - set(names):
            raise UserError(f"--config {file}: has to be without `{name}`, leave it out: {GONE[name]}")
        if not isinstance(values.get("lora", {}), dict):
            raise UserError(f"--config {file}: has to have the flags of lora below it, as `  rank: 16`")


def with_values(arguments: Sequence[str], switches: AbstractSet[str]) -> list[str]:
    """Arguments in which each switch has a value."""
    return [
        f"{argument}=true" if argument in switches and after.startswith("--") else argument
        for argument, after in zip(arguments, [*arguments[1:], "--"], strict=False)
    ]
