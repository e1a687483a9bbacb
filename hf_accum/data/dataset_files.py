"""The files of a dataset: none outside of it, no code, and the same ones as long as a run reads them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_accum.errors import UserError


@dataclass(frozen=True)
class Stamp:
    """A local file's size and time of change, by which another content is noticed without reading it."""

    file: str
    num_bytes: int
    changed_ns: int

    def check(self, name: str) -> None:
        """Refuse the file if it is another one by now: `name` is what messages call it.

        Raises:
            UserError: if it was changed or removed.
        """
        now = stamp_of(self.file)
        if now is None:
            raise UserError(f"{name}: was removed while the run reads it: each pass has to see the same dataset")
        if now != self:
            raise UserError(
                f"{name}: was changed while the run reads it ({self.num_bytes:,} bytes before, {now.num_bytes:,} "
                "now): each pass has to see the same dataset; start a new run, or work on a copy"
            )


def stamp_of(file: str) -> Stamp | None:
    """A file's stamp; None if it is not local (those of the hub are of one commit), or not there."""
    try:
        found = Path(file).stat()
    except (OSError, ValueError):
        return None
    return Stamp(file, found.st_size, found.st_mtime_ns)


def check_folder(dataset: str) -> None:
    """Refuse a local folder that means to be loaded by a script of its own, or from elsewhere, before it is opened.

    Raises:
        UserError: if there is such a script, or its description names files outside of it; if it is no folder and no
            file, but a pipe or a device.
    """
    folder = Path(dataset)
    if folder.exists() and not folder.is_dir() and not folder.is_file():
        raise UserError(
            f"dataset {dataset!r}: is a pipe or a device, which cannot be read twice: write its rows into a file "
            "(`hf-accum predict` also takes - for standard input)"
        )
    script = folder / f"{folder.resolve().name}.py"
    if os.path.isfile(script):
        raise UserError(
            f"dataset {dataset!r}: has a loading script, {script.name}, which is code and is not run: give a folder "
            "or file with the data alone (jsonl, csv, parquet)"
        )
    for pattern in _described_files(folder):
        if "://" in pattern or "::" in pattern or Path(pattern).is_absolute() or ".." in Path(pattern).parts:
            raise UserError(_outside(dataset, pattern))


def has_configs(folder: str) -> bool:
    """Whether a local folder's description says which files are of which split."""
    return any(config.get("data_files") or config.get("data_dir") for config in _configs(Path(folder)))


def described_features(folder: str) -> Mapping[str, Any]:
    """The columns of a local folder with their types, where its card describes them."""
    from datasets.info import DatasetInfosDict

    try:
        infos = DatasetInfosDict.from_directory(folder)
    except Exception:  # of a card that is wrong in any way: it is no part of the data
        return {}
    return next((info.features or {} for info in infos.values()), {})


def _configs(folder: Path) -> list[Any]:
    """The configurations of a folder's description, if it has any that can be read; datasets tells what is wrong."""
    import yaml

    found: list[Any] = []
    for name in ("README.md", ".huggingface.yaml"):
        try:
            text = (folder / name).read_text(encoding="utf-8")
            described = yaml.safe_load(text.split("---")[1] if name == "README.md" else text)
            found += [config for config in described["configs"] if isinstance(config, dict)]
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, yaml.YAMLError):
            continue
    return found


def _described_files(folder: Path) -> list[str]:
    """What a folder's description says of files."""
    left: list[Any] = [config.get(key) for config in _configs(folder) for key in ("data_files", "data_dir")]
    found: list[str] = []
    seen: set[int] = set()  # YAML may refer to one list from many places, or from within itself
    while left:
        value = left.pop()
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, dict | list) and id(value) not in seen:
            seen.add(id(value))
            left += value.values() if isinstance(value, dict) else value
    return found


def _outside(dataset: str, file: str) -> str:
    return (
        f"dataset {dataset!r}: names a file outside of it, {file} (in its description, or by a link): give that file "
        "or folder itself, if it is meant"
    )


def check_inside(dataset: str, files: Sequence[str]) -> None:
    """Refuse a dataset (a local folder, or one of the hub) whose description or links name files outside of it.

    Raises:
        UserError: naming the first such file.
    """
    folder = Path(dataset)
    is_local = os.path.isdir(dataset)
    allowed = [folder.resolve()] if is_local else []
    if is_local and folder.resolve().parent.name == "snapshots":  # of the hub's cache: links to its blobs
        allowed.append(folder.resolve().parent.parent / "blobs")
    repository = f"hf://datasets/{dataset.removeprefix('hf://datasets/')}@".lower()
    for file in files:
        last = file.rpartition("::")[2]  # zip://notes.csv::archive.zip
        if is_local:
            inside = "://" not in last and any(Path(last).resolve().is_relative_to(root) for root in allowed)
        else:
            inside = last.lower().startswith(repository) and ".." not in Path(last).parts
        if not inside:
            raise UserError(_outside(dataset, last))
