"""Files that are there whole or not at all."""

import errno
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hf_accum.byte_sizes import format_bytes
from hf_accum.errors import UserError, first_line

DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)
"""The `errno` of a write for which there is no room, or none that this user may take."""
LOCK = ".lock"
_TRIED = ".hf-accum-"  # a folder made to see whether one can be


def write_atomically(path: Path, text: str | Iterable[str]) -> None:
    """Write a text file, whole or piece by piece, under another name, flush it, and rename it."""
    partial = partial_of(path)
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.writelines([text] if isinstance(text, str) else text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented; NaN and infinities are refused, as JSON has none."""
    write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def json_safe(value: Any) -> Any:
    """A value without NaN and infinities, which JSON does not have: null stands for them."""
    if isinstance(value, Mapping):
        return {name: json_safe(item) for name, item in value.items()}
    if isinstance(value, list):
        return [json_safe(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json_lines(path: Path, values: Iterable[Any]) -> None:
    """Write values atomically, each as JSON on a line of its own, of which one is in memory at a time."""
    write_atomically(path, (json.dumps(json_safe(value), ensure_ascii=False) + "\n" for value in values))


def keep_lines(path: Path, keeps: Callable[[Any], bool], added: Iterable[Any] = ()) -> None:
    """Of a file of JSON lines those that are to be kept, and none that was not written to its end; then others."""
    kept = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    for line in lines:
        try:
            if keeps(json.loads(line)):
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    kept += [json.dumps(value, allow_nan=False) for value in added]
    if kept or lines:
        write_atomically(path, "".join(f"{line}\n" for line in kept))


class JsonLines:
    """A file to which JSON objects are added, each on a line of its own.

    Where that fails (the disk is full) they are kept, and written with the next ones; `say` is told once.
    """

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self.path = path
        self.say = say
        self._kept: list[str] = []

    def add(self, values: Iterable[Any]) -> None:
        """Write them; what has no JSON (NaN) is refused."""
        is_behind = bool(self._kept)
        self._kept += [json.dumps(value, allow_nan=False) + "\n" for value in values]
        if not self._kept:
            return
        try:
            num_bytes = self.path.stat().st_size if self.path.exists() else 0
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.writelines(self._kept)
            except OSError:
                os.truncate(self.path, num_bytes)  # no half of a line
                raise
        except OSError as error:
            if not is_behind:
                self.say(f"{self.path.name} cannot be written ({error}): its lines are kept, and tried again")
            return
        self._kept = []
        if is_behind:
            self.say(f"{self.path.name} can be written again: nothing of it is lost")

    def close(self) -> None:
        """Write what is kept still, at the end; say how much of it is lost where that fails too."""
        self.add(())
        if self._kept:
            self.say(f"{self.path.name} cannot be written: {len(self._kept):,} lines of it are lost")


def is_leftover(path: Path) -> bool:
    """Whether a killed process was writing it, or had it as its lock."""
    name = path.name
    return name == LOCK or (name.startswith(".") and (name.endswith((".partial", ".old")) or name.startswith(_TRIED)))


def why_not_written(path: Path, error: Exception) -> str:
    """What a write to `path` failed of, for a message; of a full disk also what it has left."""
    told = first_line(error)
    # safetensors says it in its message alone.
    if getattr(error, "errno", None) not in DISK_IS_FULL and "No space left" not in told:
        return told
    return f"{told}; {format_bytes(free_bytes(path))} are free there: make room, or give another place"


def free_bytes(path: Path) -> int:
    """What is free on the disk that a path is on, or would be."""
    return shutil.disk_usage(_there(path.absolute())).free


def check_vacant(folder: Path) -> None:
    """Refuse a folder for a result that holds something already, is a file, or cannot be made or replaced: by trying.

    Raises:
        UserError: naming it.
    """
    try:
        is_vacant = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
        if is_vacant:
            _try(folder.absolute().parent, folder.name)
    except OSError as error:
        raise UserError(f"{folder}: has to be a folder to write in ({why_not_written(folder, error)})") from error
    if not is_vacant:
        raise UserError(f"{folder}: has to be a new or empty folder")
    if folder.is_mount():
        raise UserError(
            f"{folder}: a disk is mounted there, and nothing can be put in its place whole: give a new folder in it"
        )


def check_new_file(file: Path) -> None:
    """Refuse a file for a result that cannot be written, before the long work and by trying: nothing is left of it.

    Raises:
        UserError: if it is a folder, in none that is there, or one that cannot be written to.
    """
    try:
        if file.is_dir():
            raise UserError(f"`output` {file}: has to be a file, it is a folder")
        if not file.absolute().parent.is_dir():
            raise UserError(f"`output` {file}: has to be in a folder that is there")
        _try(file.absolute().parent, file.name)
    except OSError as error:
        raise UserError(f"`output` {file}: cannot be written ({why_not_written(file, error)})") from error


def check_output_dir(folder: Path) -> None:
    """Refuse a run's folder that cannot be made or written to, by trying: nothing is left of it.

    Raises:
        UserError: if it is something else, or cannot be.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"`output_dir` {folder}: has to be a folder, it is a file")
        others = [] if not folder.is_dir() else sorted(p.name for p in folder.iterdir() if not is_leftover(p))
        if others and "config.yaml" not in others:
            raise UserError(
                f"`output_dir` {folder}: has to be new, empty, or an earlier run's folder; it holds "
                f"{', '.join(others[:5])}"
            )
        _try(folder, folder.name)
    except OSError as error:
        raise UserError(f"`output_dir` {folder}: has to be a folder to write in ({error})") from error


def _try(folder: Path, name: str) -> None:
    """Make what has the longest name that something `name` in a folder is given, and remove it.

    Where the folder is not there, something of its own name, or that of the first of its parents that is not.
    """
    there = _there(folder)
    name = name if there == folder else folder.relative_to(there).parts[0]
    with tempfile.TemporaryDirectory(prefix=_TRIED, dir=there) as tried:
        partial_of(Path(tried) / name).mkdir()  # not too long, and of allowed characters


def _there(path: Path) -> Path:
    return next(one for one in (path, *path.parents) if one.exists())


def partial_of(path: Path) -> Path:
    """What a file or folder is called until it is whole."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A path that nothing has, on the disk of `path`, which it may be renamed to; removed where it was not."""
    with tempfile.TemporaryDirectory(prefix=_TRIED, dir=_there(path.absolute().parent)) as folder:
        yield Path(folder) / path.name


def fill_folder_atomically(path: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into a folder beside `path`, then put it in the place of `path`.

    Its files are read by whom the umask lets: safetensors writes its own for their owner alone.
    """
    partial = partial_of(path)
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    # What a killed process of this id left behind: in a container every run has the same one.
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        fill(partial)
        readers = partial.stat().st_mode & 0o666
        for written in (*partial.rglob("*"), partial):
            if written.is_file() and readers & ~(mode := written.stat().st_mode):
                with suppress(OSError):  # where there are no such modes
                    written.chmod(mode | readers)
            _flush(written)
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
