"""Datasets of others: nothing outside of them is read, no code of them runs, and they stay the same."""

import json
import os
import pickle
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Image, IterableDataset

from hf_accum.data.source import MOST_REASONS, OTHER_REASONS, BadRow, Row, Source, good_rows, of_dataset, open_source
from hf_accum.errors import UserError

ROWS = [{"text": f"note {number}", "label": "yes"} for number in range(40)]


def write_rows(file: Path, rows: Sequence[Any] = ROWS) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def describe(folder: Path, files: object, name: str = "README.md") -> None:
    """A dataset card that says where the training split is."""
    card = {"configs": [{"config_name": "default", "data_files": [{"split": "train", "path": files}]}]}
    text = json.dumps(card)  # which is YAML
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"---\n{text}\n---\n" if name == "README.md" else text)


def read(source: Source, shard: int = 0, start: int = 0) -> list[Any]:
    return [row for _, row in source.read(shard, start)]


# Outside


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "secret.jsonl")


@pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize(
    "path", ["../secret.jsonl", "{}", "**/../../secret.jsonl", ["train.jsonl", "../secret.jsonl"]]
)
def test_a_description_cannot_name_files_outside(tmp_path: Path, secret: Path, path: Any, name: str) -> None:
    write_rows(tmp_path / "data" / "train.jsonl")
    describe(tmp_path / "data", path.format(secret) if isinstance(path, str) else path, name)
    with pytest.raises(ValueError, match=r"names a file outside of it, .*secret.jsonl"):
        open_source(str(tmp_path / "data"), "train")


@pytest.mark.parametrize(
    "path", ["http://127.0.0.1:9/x.jsonl", "hf://datasets/x/y/z.jsonl", "zip://x.jsonl::http://a/b.zip"]
)
def test_a_description_cannot_name_addresses(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And they are not looked up either."""

    def builder(*_: object, **__: object) -> None:
        raise AssertionError("opened")

    describe(tmp_path / "data", path)
    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    with pytest.raises(ValueError, match="names a file outside of it, "):
        open_source(str(tmp_path / "data"), "train")


def test_a_link_cannot_lead_outside(tmp_path: Path, secret: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.jsonl").symlink_to(secret)
    with pytest.raises(ValueError, match=r"names a file outside of it, .*data/train.jsonl"):
        open_source(str(folder), "train")
    assert len(read(open_source(str(folder / "train.jsonl"), "train"))) == 40  # the user's own word for it


def test_links_within_are_followed(tmp_path: Path) -> None:
    """Also a folder that is itself reached by a link, and one of the hub's cache: links to its blobs."""
    write_rows(tmp_path / "data" / "stored" / "rows.bin")
    (tmp_path / "data" / "train.jsonl").symlink_to("stored/rows.bin")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    for folder in ("data", "link"):
        assert len(read(open_source(str(tmp_path / folder), "train"))) == 40
    cache = tmp_path / "datasets--me--notes"
    write_rows(cache / "blobs" / "0123")
    snapshot = cache / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "train.jsonl").symlink_to("../../blobs/0123")
    assert len(read(open_source(str(snapshot), "train"))) == 40
    (snapshot / "train.jsonl").unlink()
    (snapshot / "train.jsonl").symlink_to(write_rows(tmp_path / "secret"))
    with pytest.raises(ValueError, match="names a file outside of it"):
        open_source(str(snapshot), "train")


class Builder:
    """What datasets makes of a dataset of the hub, as far as it is asked."""

    def __init__(self, files: list[str]) -> None:
        self.config = type("Config", (), {"data_files": {"train": files}})()
        self.info = datasets.DatasetInfo()


@pytest.mark.parametrize(
    "file",
    [
        "/etc/passwd",
        "hf://datasets/me/other@abc/train.jsonl",
        "hf://datasets/me/notes-of-others@abc/train.jsonl",
        "https://example.org/train.jsonl",
        "zip://train.jsonl::/home/me/private.zip",
        "hf://datasets/me/notes@abc/../../other@abc/train.jsonl",
    ],
)
def test_a_dataset_of_the_hub_cannot_lead_outside(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    good = "hf://datasets/me/notes@abc/train.jsonl"
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: Builder([good, file]))
    with pytest.raises(ValueError, match="names a file outside of it"):
        open_source("me/notes", "train")


def test_a_dataset_of_the_hub_is_of_the_revision_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def builder(path: str, **how: Any) -> None:
        asked.append({"path": path, **how})
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    with pytest.raises(ValueError, match="ConnectionError: offline"):
        open_source("me/notes", "train", revision="abc")
    assert asked == [{"path": "me/notes", "revision": "abc"}]


def test_a_local_dataset_has_no_revisions(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "train.jsonl")
    for dataset in (file, tmp_path):
        with pytest.raises(ValueError, match="`dataset_revision` abc: has to be left out with a local dataset"):
            open_source(str(dataset), "train", revision="abc")


def test_paths_in_rows_are_not_opened(tmp_path: Path, secret: Path) -> None:
    """As of pictures; the rows are told as they are."""
    folder = tmp_path / "data"
    folder.mkdir()
    write_rows(folder / "train" / "metadata.jsonl", [{"file_name": "a.png", "text": "a"}] * 3)
    (folder / "train" / "a.png").write_bytes(b"no picture")
    images = open_source(str(folder), "train")
    rows = [row for shard in range(images.num_shards) for row in read(images, shard)]
    assert [row["text"] for row in rows] == ["a"] * 3
    table = pa.table({"text": ["a"], "image": [{"path": str(secret), "bytes": None}]})
    features = datasets.Features({"text": datasets.Value("string"), "image": Image()})
    pq.write_table(table.cast(features.arrow_schema), tmp_path / "rows.parquet")
    assert read(open_source(str(tmp_path / "rows.parquet"), "train")) == [
        {"text": "a", "image": {"bytes": None, "path": str(secret)}}
    ]


def test_names_of_files_are_no_patterns_and_no_addresses(tmp_path: Path) -> None:
    for name in ("notes[1].jsonl", "memory:x.jsonl", "{a,b}.jsonl", "*.jsonl"):
        file = write_rows(tmp_path / name, ROWS[:3])
        assert read(open_source(str(file), "train")) == ROWS[:3]


@pytest.mark.parametrize("name", ["text", "json", "pandas", "webdataset", "imagefolder"])
def test_a_format_is_no_dataset(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """datasets would read whatever lies in the working directory."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is the name of a format"):
        open_source(name, "train")


# Code


class Evil:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def with_script(folder: Path, trace: Path) -> None:
    write_rows(folder / "train.jsonl")
    (folder / "data.py").write_text(f"import pathlib\npathlib.Path({str(trace)!r}).touch()\n")


def with_pickles(folder: Path, trace: Path) -> None:
    folder.mkdir()
    (folder / "train.pkl").write_bytes(pickle.dumps(Evil(trace)))


def with_pickles_in_an_archive(suffix: str) -> Callable[[Path, Path], None]:
    def write(folder: Path, trace: Path) -> None:
        folder.mkdir()
        with tarfile.open(folder / "train-000.tar", "w") as archive:
            for name, content in (("0.txt", b"note"), (f"0.{suffix}", pickle.dumps(Evil(trace)))):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, BytesIO(content))

    return write


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (with_script, r"has a loading script, data.py, which is code and is not run"),
        (with_pickles, "neither a local file or folder with data in it"),
        (with_pickles_in_an_archive("pth"), "cannot be read"),
        (with_pickles_in_an_archive("pickle"), None),
    ],
)
def test_nothing_of_a_dataset_runs(tmp_path: Path, make: Callable[[Path, Path], None], said: str | None) -> None:
    trace = tmp_path / "trace"
    make(tmp_path / "data", trace)
    if said is None:
        assert [row["txt"] for row in read(open_source(str(tmp_path / "data"), "train"))] == ["note"]
    else:
        with pytest.raises(ValueError, match=said):
            read(open_source(str(tmp_path / "data"), "train"))
    assert not trace.exists()
    pickle.loads(pickle.dumps(Evil(trace)))
    assert trace.exists(), "the oracle is blind"


# Broken files


def test_a_parquet_file_broken_in_the_middle_is_named_with_its_last_good_row(tmp_path: Path) -> None:
    for part in range(3):
        file = tmp_path / f"train-{part}.parquet"
        pq.write_table(pa.Table.from_pylist(ROWS), file, row_group_size=10)
    file = tmp_path / "train-1.parquet"
    content = bytearray(file.read_bytes())
    start = pq.ParquetFile(file).metadata.row_group(2).column(0).data_page_offset or 0
    content[start : start + 40] = b"\xff" * 40
    file.write_bytes(content)
    source = open_source(str(tmp_path), "train")
    assert len(read(source, 0)) == 40
    with pytest.raises(ValueError, match=r"^train-1.parquet: cannot be read after row 20 \("):
        read(source, 1)


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "is 0 bytes"), (b"PAR1" + b"x" * 99, "magic bytes"), (None, "has no column 'label'")]
)
def test_a_parquet_file_that_is_none_is_named_before_anything_is_read(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "train-0.parquet")
    file = tmp_path / "train-1.parquet"
    if content is None:
        pq.write_table(pa.table({"text": ["a"]}), file)
    else:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"train-1.parquet.*{said}"):
        open_source(str(tmp_path), "train", columns=("text", "label"))


def test_an_error_of_the_program_is_not_taken_for_a_broken_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(str(write_rows(tmp_path / "train.jsonl")), "train")
    monkeypatch.delattr("hf_accum.data.formats.rows._json_row")
    with pytest.raises(NameError):
        read(source)


# Changes


def appended(file: Path) -> None:
    with file.open("a") as target:
        target.write(json.dumps(ROWS[0]) + "\n")


def edited(file: Path) -> None:
    """Of the same size."""
    file.write_text(file.read_text().replace("yes", "no!"))
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))


@pytest.mark.parametrize("change", [appended, edited, Path.unlink])
@pytest.mark.parametrize("format_", ["jsonl", "csv", "parquet", "txt"])
def test_a_file_that_changes_between_passes_is_an_error(
    tmp_path: Path, change: Callable[[Path], None], format_: str
) -> None:
    file = write_rows(tmp_path / f"train.{format_}")
    if format_ == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), file)
    source = open_source(str(tmp_path), "train")
    for _ in range(2):
        assert read(source)
    if format_ == "parquet" and change is not Path.unlink:
        pq.write_table(pa.Table.from_pylist(ROWS[: -1 if change is appended else 40]), file)
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    else:
        change(file)
    with pytest.raises(ValueError, match=rf"train.{format_}: was (changed|removed) while the run reads it"):
        read(source)


@pytest.mark.parametrize("change", [appended, edited, Path.unlink])
def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path, change: Callable[[Path], None]) -> None:
    file = write_rows(tmp_path / "train.jsonl")
    rows = open_source(str(file), "train").read(0, 0)
    next(rows)
    change(file)
    with pytest.raises(ValueError, match=r"train.jsonl: was (changed|removed) while the run reads it"):
        list(rows)


def test_a_file_that_breaks_because_it_changed_is_told_so(tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), file)
    source = open_source(str(file), "train")
    file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"was changed while the run reads it \([\d,]+ bytes before, 0 now\)"):
        read(source)


def test_a_folder_of_links_to_changed_files(tmp_path: Path) -> None:
    write_rows(tmp_path / "stored" / "rows.bin")
    (tmp_path / "train.jsonl").symlink_to("stored/rows.bin")
    source = open_source(str(tmp_path), "train")
    appended(tmp_path / "stored" / "rows.bin")
    with pytest.raises(ValueError, match="was changed"):
        read(source)


@pytest.mark.parametrize("later", [9, 11, 0])
def test_a_stream_with_other_numbers_of_rows_in_later_passes_is_an_error(later: int) -> None:
    sizes = iter([10, 10, later])

    def rows() -> Iterator[Row]:
        yield from ({"number": number} for number in range(next(sizes)))

    stream = IterableDataset.from_generator(rows)
    assert isinstance(stream, IterableDataset)
    source = of_dataset(stream)
    for _ in range(2):
        assert len(read(source)) == 10
    with pytest.raises(ValueError, match=rf"shard 0: has {later} rows now, and had 10 before"):
        read(source)


def test_a_pass_from_the_middle_or_left_early_is_no_other_number_of_rows() -> None:
    source = of_dataset(Dataset.from_list(ROWS).to_iterable_dataset())
    next(source.read(0, 0))
    assert len(read(source, start=30)) == 10
    assert len(read(source)) == 40
    assert read(source, start=50) == []
    assert len(read(source)) == 40


# Bad rows without end


def test_reasons_that_differ_in_every_row_are_not_kept_without_end(tmp_path: Path) -> None:
    def prepare(row: Row) -> None:
        raise BadRow("label", f"label {row['text']!r} is out of range")

    source = open_source(str(write_rows(tmp_path / "train.jsonl")), "train")
    bad_rows: Counter[str] = Counter()
    assert list(good_rows(source, 0, 0, prepare, "skip", bad_rows)) == []
    assert bad_rows.total() == 40
    assert len(bad_rows) == MOST_REASONS + 1
    assert bad_rows[OTHER_REASONS] == 40 - MOST_REASONS


def test_a_description_without_end_is_read_once(tmp_path: Path) -> None:
    """Lists that are named again and again: to follow each name would take for ever."""
    write_rows(tmp_path / "train.jsonl")
    lists = "\n".join(f"- &l{i} [*l{i - 1}, *l{i - 1}]" if i else "- &l0 [train.jsonl]" for i in range(60))
    (tmp_path / "README.md").write_text(f"---\nx:\n{lists}\nconfigs:\n- data_files: {{a: *l59, b: &me [*me]}}\n---\n")
    from hf_accum.data.dataset_files import check_folder

    check_folder(str(tmp_path))
    shutil.rmtree(tmp_path)


def test_a_pipe_or_a_device_is_refused_as_it_cannot_be_read_twice(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    for dataset in (str(tmp_path / "rows.jsonl"), "/dev/null"):
        with pytest.raises(UserError, match=r"is a pipe or a device, .*write its rows into a file"):
            open_source(dataset, "train")
