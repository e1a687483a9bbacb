"""What is looked at of a command line before it is parsed."""

import os
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path


def check_config_files(arguments: Sequence[str]) -> None:
    """Refuse YAML files whose content the parser would only wonder at.

    Raises:
        ValueError: if a file of `--config` is not UTF-8, or no mapping of flags.
    """
    import yaml

    for argument, after in zip(arguments, [*arguments[1:], ""], strict=False):
        file = after if argument == "--config" else argument.removeprefix("--config=")
        if file == argument or not os.path.isfile(file):
            continue
        try:
            values = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"--config {file}: has to be UTF-8 ({error})") from error
        except (OSError, yaml.YAMLError, ValueError, RecursionError):
            continue  # the parser says what is wrong
        if not isinstance(values, dict):
            raise ValueError(f"--config {file}: has to hold flags, as `max_steps: 100`, one a line")
        if not isinstance(values.get("lora", {}), dict):
            raise ValueError(f"--config {file}: has to have the flags of lora below it, as `  rank: 16`")


def with_values(arguments: Sequence[str], switches: AbstractSet[str]) -> list[str]:
    """Arguments in which each switch has a value."""
    return [
        f"{argument}=true" if argument in switches and after.startswith("--") else argument
        for argument, after in zip(arguments, [*arguments[1:], "--"], strict=False)
    ]
