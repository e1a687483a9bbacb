"""Files that are there whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_atomically(path: Path, text: str) -> None:
    """Write a text file under another name, flush it, and rename it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented; NaN and infinities are refused, as JSON has none."""
    write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def check_output_dir(folder: Path) -> None:
    """Refuse a run's folder that cannot be made or written to, by trying: nothing is left of it.

    Raises:
        ValueError: if it is something else, or cannot be.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--output_dir {folder}: has to be a folder, it is a file")
        if folder.is_dir() and any(folder.iterdir()) and not (folder / "config.yaml").exists():
            others = ", ".join(sorted(path.name for path in folder.iterdir())[:5])
            raise ValueError(
                f"--output_dir {folder}: has to be new, empty, or an earlier run's folder; it holds {others}"
            )
        there = next(path for path in (folder, *folder.parents) if path.exists())
        with tempfile.TemporaryDirectory(prefix=".hf-accum-", dir=there) as tried:
            name = folder.name if there == folder else folder.relative_to(there).parts[0]
            (Path(tried) / name).mkdir()  # not too long, and of allowed characters
    except OSError as error:
        raise ValueError(f"--output_dir {folder}: has to be a folder to write in ({error})") from error


def fill_folder_atomically(path: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into a folder beside `path`, then put it in the place of `path`."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    # What a killed process of this id left behind: in a container every run has the same one.
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        fill(partial)
        for file in partial.rglob("*"):
            if file.is_file():
                _flush(file)
        if path.exists():
            path.rename(old)
        try:
            partial.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
        _flush(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
