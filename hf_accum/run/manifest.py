"""Folders that can be told from damaged ones: a manifest has each file's size and checksum."""

import hashlib
import json
from pathlib import Path

from hf_accum.errors import first_line

MANIFEST = "manifest.json"
_CHUNK_BYTES = 2**20


class Damaged(ValueError):
    """A folder that is not what was written; the message says which file, and why."""


def write_manifest(folder: Path) -> None:
    """List all files of a folder, at any depth, in its manifest."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    listed = {
        str(path.relative_to(folder).as_posix()): {"bytes": path.stat().st_size, "blake2b": _checksum(path)}
        for path in files
    }
    (folder / MANIFEST).write_text(json.dumps({"files": listed}, indent=2) + "\n", encoding="utf-8")


def check_manifest(folder: Path) -> None:
    """Read all files of a folder, and compare them with its manifest.

    Raises:
        Damaged: if a file is not there, or not as it was written, or the manifest itself is not.
    """
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        expected = {str(name): (int(of_file["bytes"]), str(of_file["blake2b"])) for name, of_file in listed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{folder.name}/{MANIFEST} cannot be read ({first_line(error)})") from error
    if not expected:
        raise Damaged(f"{folder.name}/{MANIFEST} lists no file")
    for name, (num_bytes, checksum) in expected.items():
        path = folder / name
        try:
            if not path.resolve().is_relative_to(folder.resolve()):
                raise Damaged(f"{folder.name}/{name} is outside of the folder")
            if path.stat().st_size != num_bytes:
                raise Damaged(f"{folder.name}/{name} has {path.stat().st_size:,} bytes, {num_bytes:,} were written")
            if _checksum(path) != checksum:
                raise Damaged(f"{folder.name}/{name} is not what was written: its checksum is another")
        except OSError as error:
            raise Damaged(f"{folder.name}/{name} cannot be read ({first_line(error)})") from error


def _checksum(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
