"""A folder with a manifest: any file that is another, or not there, is told from what was written."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_accum.run.manifest import MANIFEST, Damaged, check_manifest, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "step-1"
    (made / "adapter").mkdir(parents=True)
    (made / "state.json").write_text("{}")
    (made / "adapter" / "weights").write_bytes(bytes(range(256)) * 9000)  # more than is read at once
    write_manifest(made)
    return made


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


def rename(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"]["../outside"] = manifest["files"].pop("state.json")
    (folder / "state.json").rename(folder.parent / "outside")
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_what_was_written_is_whole_wherever_it_lies(folder: Path) -> None:
    check_manifest(folder)
    (folder / "notes.txt").write_text("of somebody's own")
    check_manifest(folder.rename(folder.with_name("elsewhere")))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda f: flip(f / "adapter" / "weights"),
            "adapter/weights is not what was written: its checksum is another",
        ),
        (lambda f: (f / "state.json").write_text("{}\n"), "state.json has 3 bytes, 2 were written"),
        (lambda f: (f / "state.json").unlink(), "state.json cannot be read"),
        (lambda f: (f / MANIFEST).unlink(), "manifest.json cannot be read"),
        (lambda f: (f / MANIFEST).write_text("[]"), "manifest.json cannot be read"),
        (lambda f: (f / MANIFEST).write_text('{"files": {"state.json": 2}}'), "manifest.json cannot be read"),
        (lambda f: (f / MANIFEST).write_text('{"files": {}}'), "manifest.json lists no file"),
        (rename, "is outside of the folder"),
    ],
)
def test_damage_is_said_with_the_file(folder: Path, damage: Callable[[Path], object], said: str) -> None:
    damage(folder)
    with pytest.raises(Damaged, match=said):
        check_manifest(folder)
