"""Files and folders that are there whole or not at all."""

import errno
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from hf_accum.errors import UserError
from hf_accum.files import (
    JsonLines,
    beside,
    check_new_file,
    check_vacant,
    fill_folder_atomically,
    is_leftover,
    why_not_written,
    write_atomically,
    write_json,
)


def fail(*_: Any, **__: Any) -> Any:
    raise OSError("no space left on device")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@given(first=st.text(st.characters(exclude_characters="\r", exclude_categories=["Cs"])))
def test_text_is_written_and_replaced_whole(tmp_path_factory: pytest.TempPathFactory, first: str) -> None:
    file = tmp_path_factory.mktemp("files") / "config.yaml"
    for text in (first, "", "later"):
        write_atomically(file, text)
        assert file.read_bytes() == text.encode()
        assert names(file.parent) == ["config.yaml"]


@pytest.mark.parametrize("what", ["os.fsync", "pathlib.Path.replace"])
def test_a_write_that_fails_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    file = tmp_path / "config.yaml"
    write_atomically(file, "old")
    with monkeypatch.context() as patched:
        patched.setattr(what, fail)
        with pytest.raises(OSError, match="no space left"):
            write_atomically(file, "new")
    assert file.read_text() == "old"
    assert names(tmp_path) == ["config.yaml"]


def test_text_that_cannot_be_encoded_leaves_the_old_content(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    write_atomically(file, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(file, "new \ud800")
    assert file.read_text() == "old"
    assert names(tmp_path) == ["config.yaml"]


def test_a_file_is_never_seen_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the time of the flush the text is complete under another name, and the old one is in place."""
    file = tmp_path / "evaluation.json"
    write_atomically(file, "old")
    seen: list[tuple[str, str]] = []
    flush = os.fsync

    def look(descriptor: int) -> None:
        (other,) = (path for path in tmp_path.iterdir() if path != file)
        seen.append((file.read_text(), other.read_text()))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    write_atomically(file, "new")
    assert seen == [("old", "new")]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(values)
def test_json_comes_back(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    file = tmp_path_factory.mktemp("files") / "evaluation.json"
    write_json(file, value)
    assert json.loads(file.read_text()) == value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_does_not_have_are_refused(tmp_path: Path, value: float) -> None:
    file = tmp_path / "evaluation.json"
    write_json(file, {"loss": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(file, {"loss": [value]})
    assert json.loads(file.read_text()) == {"loss": 1.0}


# Folders


def write(text: str, *names: str) -> Callable[[Path], None]:
    """Fills a folder with files of one text."""

    def fill(partial: Path) -> None:
        for name in names or ("weights",):
            (partial / name).write_text(text)

    return fill


def content(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_a_folder_is_filled_beside_and_put_in_place(tmp_path: Path) -> None:
    folder = tmp_path / "step-1" / "adapter"

    def fill(partial: Path) -> None:
        assert partial != folder
        assert partial.is_dir()
        assert not list(partial.iterdir())
        (partial / "sub").mkdir()
        (partial / "weights").write_text("1")
        (partial / "sub" / "tokenizer").write_text("2")

    fill_folder_atomically(folder, fill)
    assert content(folder) == {"weights": "1", "sub/tokenizer": "2"}
    assert names(folder.parent) == ["adapter"]


def test_a_folder_is_replaced_with_all_that_was_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    fill_folder_atomically(folder, write("1", "a", "b"))
    fill_folder_atomically(folder, write("2", "b"))
    assert content(folder) == {"b": "2"}
    assert names(tmp_path) == ["adapter"]


@pytest.mark.parametrize("error", [OSError("no space left"), ValueError("bad"), KeyboardInterrupt()])
@pytest.mark.parametrize("is_old", [True, False])
def test_a_fill_that_fails_leaves_the_old_folder_or_none(tmp_path: Path, error: BaseException, is_old: bool) -> None:
    folder = tmp_path / "adapter"
    if is_old:
        fill_folder_atomically(folder, write("old"))

    def fill(partial: Path) -> None:
        (partial / "weights").write_text("new")
        raise error

    with pytest.raises(type(error)):
        fill_folder_atomically(folder, fill)
    assert content(tmp_path) == ({"adapter/weights": "old"} if is_old else {})
    assert names(tmp_path) == (["adapter"] if is_old else [])


@pytest.mark.parametrize("which", ["os.fsync", "first rename", "second rename"])
def test_a_disk_that_fails_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    folder = tmp_path / "adapter"
    fill_folder_atomically(folder, write("old"))
    rename = Path.rename
    calls: list[Path] = []

    def rename_until_it_fails(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) == (1 if which == "first rename" else 2):
            raise OSError("no space left on device")
        return rename(path, target)

    with monkeypatch.context() as patched:
        if which == "os.fsync":
            patched.setattr(os, "fsync", fail)
        else:
            patched.setattr(Path, "rename", rename_until_it_fails)
        with pytest.raises(OSError, match="no space left"):
            fill_folder_atomically(folder, write("new"))
    assert content(tmp_path) == {"adapter/weights": "old"}
    assert names(tmp_path) == ["adapter"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_weights_are_read_by_whom_the_umask_lets(tmp_path: Path, umask: int, mode: int) -> None:
    def fill(folder: Path) -> None:
        (folder / "sub").mkdir()
        save_file({"weight": torch.ones(2)}, folder / "sub" / "model.safetensors")

    before = os.umask(umask)
    try:
        fill_folder_atomically(tmp_path / "model", fill)
    finally:
        os.umask(before)
    assert (tmp_path / "model" / "sub" / "model.safetensors").stat().st_mode & 0o777 == mode


def test_what_a_killed_process_left_behind_is_no_obstacle(tmp_path: Path) -> None:
    """In a container the next run has the same process id."""
    for suffix in ("partial", "old"):
        left = tmp_path / f".adapter.{os.getpid()}.{suffix}"
        left.mkdir()
        (left / "stale").write_text("half")
    for text in ("one", "two"):
        fill_folder_atomically(tmp_path / "adapter", write(text))
        assert content(tmp_path) == {"adapter/weights": text}


def lines_in(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="of Linux")
def test_lines_that_a_full_disk_has_no_room_for_are_kept_and_written_later(tmp_path: Path) -> None:
    file, said = tmp_path / "metrics.jsonl", list[str]()
    lines = JsonLines(file, said.append)
    file.symlink_to("/dev/full")
    lines.add([{"step": 1}])
    lines.add([{"step": 2}, {"step": 3}])
    assert len(said) == 1
    assert "metrics.jsonl cannot be written" in said[0]
    file.unlink()
    lines.add([{"step": 4}])
    assert [line["step"] for line in lines_in(file)] == [1, 2, 3, 4]
    assert len(said) == 2
    lines.add([])
    lines.add([{"step": 5}])
    assert [line["step"] for line in lines_in(file)] == [1, 2, 3, 4, 5]
    assert len(said) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="of Linux")
@pytest.mark.parametrize("has_room", [True, False])
def test_lines_that_are_kept_at_the_end_are_written_or_said_to_be_lost(tmp_path: Path, has_room: bool) -> None:
    file, said = tmp_path / "metrics.jsonl", list[str]()
    lines = JsonLines(file, said.append)
    lines.close()
    assert not file.exists()
    file.symlink_to("/dev/full")
    lines.add([{"step": 1}, {"step": 2}])
    if has_room:
        file.unlink()
    lines.close()
    if has_room:
        assert [line["step"] for line in lines_in(file)] == [1, 2]
        assert said[1:] == ["metrics.jsonl can be written again: nothing of it is lost"]
    else:
        assert said[1:] == ["metrics.jsonl cannot be written: 2 lines of it are lost"]


def test_of_a_line_that_was_half_written_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, said = tmp_path / "metrics.jsonl", list[str]()
    lines = JsonLines(file, said.append)
    lines.add([{"step": 1}])

    class Half:
        def __enter__(self) -> "Half":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def writelines(self, texts: list[str]) -> None:
            with open(file, "a") as real:
                real.write("".join(texts)[:9])
            raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", lambda *_, **__: Half())
        lines.add([{"step": 2}])
    assert file.read_text() == '{"step": 1}\n'
    lines.add([])
    assert [line["step"] for line in lines_in(file)] == [1, 2]


def test_no_number_that_json_does_not_have_gets_into_a_line(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "lines.jsonl", print)
    with pytest.raises(ValueError, match="not JSON compliant"):
        lines.add([{"loss": math.nan}])
    assert not (tmp_path / "lines.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        (".config.yaml.7.partial", True),
        (".step-00000003.12.old", True),
        (".hf-accum-x1", True),
        (".lock", True),
        ("config.yaml", False),
        (".git", False),
        ("thesis.old", False),
    ],
)
def test_what_a_killed_process_left_is_told_from_the_rest(tmp_path: Path, name: str, is_one: bool) -> None:
    assert is_leftover(tmp_path / name) == is_one


# Before and after a write


@pytest.mark.parametrize("check", [check_vacant, check_new_file])
def test_a_place_that_cannot_be_written_is_refused_before_and_nothing_is_left(
    tmp_path: Path, check: Callable[[Path], None]
) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file" / "out", tmp_path / ("n" * 250), tmp_path / ("n" * 300)):
        with pytest.raises(UserError, match=r"has to be|cannot be written"):
            check(place)
    check(tmp_path / "new")
    assert names(tmp_path) == ["file"]


def test_where_a_disk_is_mounted_no_folder_can_be_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path)
    with pytest.raises(UserError, match=r"a disk is mounted there.* give a new folder in it"):
        check_vacant(tmp_path)
    check_vacant(tmp_path / "new")


def test_a_file_for_a_result_is_no_folder_and_in_one_that_is_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it is a folder"):
        check_new_file(tmp_path)
    with pytest.raises(UserError, match="has to be in a folder that is there"):
        check_new_file(tmp_path / "none" / "out.json")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "x"), ValueError("IoError: No space left on device")])
def test_of_a_full_disk_is_said_what_it_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    asked: list[Path] = []

    def usage(path: Path) -> Any:
        asked.append(path)
        return SimpleNamespace(free=3 * 2**20)

    monkeypatch.setattr("shutil.disk_usage", usage)
    assert "3 MiB are free there: make room" in why_not_written(tmp_path / "none" / "out", error)
    assert asked == [tmp_path]  # the disk that it would be on
    assert why_not_written(tmp_path, OSError(errno.EROFS, "read-only")).endswith("read-only")


def test_a_path_beside_another_is_on_its_disk_and_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "none" / "out"
    with beside(out) as place:
        place.mkdir()
        assert place.is_relative_to(tmp_path)
    with beside(out) as place:
        place.mkdir()
        out.parent.mkdir()
        place.rename(out)
    assert [names(tmp_path), names(out.parent)] == [["none"], ["out"]]
