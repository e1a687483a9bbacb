"""What is looked at of a command line before it is parsed."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import NoReturn, TypeVar

from hf_accum.config.flags import as_flags, flag_names
from hf_accum.config.recipe import RecipeConfig
from hf_accum.config.secrets import without_secrets
from hf_accum.config.serialization import _to_yaml
from hf_accum.errors import UserError


def check_config_files(arguments: Sequence[str]) -> None:
    """Refuse YAML files whose content the parser would only wonder at.

    Raises:
        UserError: if a file of `--config` is not UTF-8, or no mapping of flags.
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
        if not isinstance(values.get("lora", {}), dict):
            raise UserError(f"--config {file}: has to have the flags of lora below it, as `  rank: 16`")


def with_values(arguments: Sequence[str], switches: AbstractSet[str]) -> list[str]:
    """Arguments in which each switch has a value."""
    return [
        f"{argument}=true" if argument in switches and after.startswith("--") else argument
        for argument, after in zip(arguments, [*arguments[1:], "--"], strict=False)
    ]


C = TypeVar("C", bound=RecipeConfig)


def parse(config_class: type[C], description: str, arguments: Sequence[str] | None = None) -> C:
    """A recipe's configuration from the command line: a YAML file by `--config`, then flags on top.

    A switch (a flag of true or false) may stand alone: `--debug`. `--help` and `--print_config` need no torch. A
    value that is not allowed ends the process with status 2 and a message that says which, and why.
    """
    from jsonargparse import ArgumentParser, set_dumper, set_parsing_settings

    class Parser(ArgumentParser):
        """Tells of flags in its messages, and no secret: they repeat what was given."""

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            """End the process with a message."""
            super().error(without_secrets(as_flags(message, flag_names(config_class))), ex)

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    set_dumper("yaml", _to_yaml)
    parser = Parser(prog=Path(sys.argv[0]).name, description=description, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the flags below.")
    parser.add_class_arguments(config_class)
    switches = {f"--{f.name}" for f in dataclasses.fields(config_class) if f.type is bool}
    given = with_values(sys.argv[1:] if arguments is None else arguments, switches)
    try:
        check_config_files(given)
        values = vars(parser.instantiate(parser.parse_args(given)))
        return config_class(**{f.name: values[f.name] for f in dataclasses.fields(config_class)})
    except ValueError as error:
        parser.error(str(error))
