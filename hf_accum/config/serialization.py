"""A configuration as plain values, and as YAML."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_accum.config.recipe import RecipeConfig


def as_dict(config: RecipeConfig) -> dict[str, Any]:
    """The configuration as plain values, nested as its flags are."""
    return dataclasses.asdict(config)


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by the names of their flags: `lora.rank`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flattened(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def write_config(config: RecipeConfig, folder: Path) -> None:
    """Write `config.yaml`, which `--config` reads back to the same configuration."""
    from hf_accum.files import write_atomically

    write_atomically(folder / "config.yaml", to_yaml(as_dict(config)))


def to_yaml(values: dict[str, Any]) -> str:
    """YAML that jsonargparse reads back to the same values."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Puts quotes on texts that jsonargparse, but not PyYAML, would read back as a number: 1e5."""

    number = re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$")
    Dumper.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    return yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=True)
