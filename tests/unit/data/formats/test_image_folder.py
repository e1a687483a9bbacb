"""Folders of images as rows: classes by folders or metadata, and no file of another place."""

import io
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import pytest
from tiny_vision import noise, stored, write_folder

from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.formats.image_folder import ImageFile, open_image_folder
from hf_accum.data.formats.rows import BadRow
from hf_accum.data.source import open_source
from hf_accum.distributed.ranks import OneRank
from hf_accum.tasks.vision.data import open_masked_images
from hf_accum.tasks.vision.images import Picture, open_rgb, picture_of


def test_a_folder_of_folders_has_a_class_for_each(tmp_path: Path) -> None:
    write_folder(tmp_path / "train")
    source = open_source(str(tmp_path), "train")
    rows = [row for shard in range(source.num_shards) for _, row in source.read(shard, 0)]
    assert len(rows) == 6
    for row in rows:
        assert isinstance(row, dict)
        assert isinstance(row["image"], ImageFile)
        assert row["label"] == ("cat", "dog")[int(Path(row["image"].name).stem) % 2]
        assert row["image"].name == f"train/{row['label']}/{Path(row['image'].path).name}"


def test_an_image_that_is_changed_while_it_is_read_ends_the_run(tmp_path: Path) -> None:
    write_folder(tmp_path)
    source = open_source(str(tmp_path), "train")
    ((_, row),) = source.read(0, 0)
    assert isinstance(row, dict)
    Path(row["image"].path).write_bytes(stored(noise(seed=99))[:-1])
    with pytest.raises(ValueError, match="was changed while the run reads it"):
        row["image"].read("image", 10**6)


def test_metadata_names_images_of_its_folder_only(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "outside.png").write_bytes(stored(noise()))
    for name in ("a", "b", "a-mask"):
        (folder / f"{name}.png").write_bytes(stored(noise()))
    lines = [
        {"file_name": "a.png", "mask_file_name": "a-mask.png", "weather": "rain"},
        {"file_name": "../outside.png", "mask_file_name": "a-mask.png"},
        {"file_name": "b.png", "mask_file_name": None},
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = open_source(str(folder), "train")
    rows = [row for shard in range(source.num_shards) for _, row in source.read(shard, 0)]
    good = [row for row in rows if isinstance(row, dict)]
    bad = sorted(str(row) for row in rows if isinstance(row, BadRow))
    assert [(row["image"].name, row["mask"].name, row["weather"]) for row in good] == [
        ("a.png", "a-mask.png", "rain")
    ]
    assert bad == [
        "field 'file_name': metadata.jsonl, row 2: '../outside.png' is no image of this dataset",
        "field 'mask_file_name': metadata.jsonl, row 3: None is no image of this dataset",
    ]


def rows_of(folder: Path, split: str = "train") -> list[Any]:
    """All rows, good and bad, in order."""
    source = open_source(str(folder), split)
    return [row for shard in range(source.num_shards) for _, row in source.read(shard, 0)]


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_metadata_of_any_format_is_in_one_order_wherever_it_lies(tmp_path: Path, form: str) -> None:
    """Also where it names images by way of the folder above."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = tmp_path / "data"
    (data / "train" / "images").mkdir(parents=True)
    (data / "train" / "notes").mkdir()
    for number in range(30):
        (data / "train" / "images" / f"{number}.png").write_bytes(stored(noise(4, 4, number)))
    lines = [{"file_name": f"../images/{number}.png", "label": "ab"[number % 2]} for number in range(30)]
    metadata = data / "train" / "notes" / f"metadata.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(lines), metadata)
    elif form == "csv":
        metadata.write_text("file_name,label\n" + "".join(f"{line['file_name']},{line['label']}\n" for line in lines))
    else:
        metadata.write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.copytree(data, tmp_path / "elsewhere" / "copy")
    first, again = rows_of(data), rows_of(tmp_path / "elsewhere" / "copy")
    assert [row["image"].name for row in first] == [row["image"].name for row in again]
    assert sorted(row["label"] for row in first) == ["a"] * 15 + ["b"] * 15
    assert {row["image"].name for row in first} == {f"train/images/{number}.png" for number in range(30)}


def test_metadata_that_cannot_be_read_or_is_there_twice_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,label,label\n")
    with pytest.raises(ValueError, match=r"metadata.csv cannot be read .*two columns have the same name"):
        open_source(str(tmp_path), "train")
    (tmp_path / "metadata.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"has metadata in several formats \(metadata.csv, metadata.jsonl\)"):
        open_source(str(tmp_path), "train")


def test_an_image_beside_the_folders_of_classes_is_a_bad_row(tmp_path: Path) -> None:
    write_folder(tmp_path / "train")
    (tmp_path / "train" / "stray.png").write_bytes(stored(noise()))
    (tmp_path / "train" / "cat" / "thumbnails").mkdir()
    (tmp_path / "train" / "cat" / "thumbnails" / "0.png").write_bytes(stored(noise()))
    rows = rows_of(tmp_path)
    assert sorted(str(row) for row in rows if isinstance(row, BadRow)) == [
        f"field 'label': train/{name} is in no folder of a class: these have to be equally deep"
        for name in ("cat/thumbnails/0.png", "stray.png")
    ]
    assert Counter(row["label"] for row in rows if isinstance(row, dict)) == {"cat": 3, "dog": 3}


class Flaky(fsspec.AbstractFileSystem):
    """A network: its file can be read after so many failures."""

    protocol = "flaky"
    num_failures = 0
    error: Exception = ConnectionError("reset by peer")

    def _open(self, *arguments: Any, **named: Any) -> Any:
        if Flaky.num_failures:
            Flaky.num_failures -= 1
            raise Flaky.error
        return io.BytesIO(stored(noise()))


def test_a_network_that_fails_is_no_bad_image(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    folder = open_image_folder("me/signs", ["flaky://me/signs@abc/cat/0.png"])
    ((_, row),) = folder.read(0, 0)
    assert isinstance(row, dict)
    assert row["image"].name == "cat/0.png"
    picture = picture_of(row, "image")
    monkeypatch.setattr(Flaky, "num_failures", 2)
    assert picture.read() == stored(noise())
    assert slept == [1, 4]
    for error in (Flaky.error, FileNotFoundError("gone"), PermissionError("a token is needed")):
        monkeypatch.setattr(Flaky, "error", error)
        monkeypatch.setattr(Flaky, "num_failures", 5)
        with pytest.raises(ValueError, match=r"cat/0.png: cannot be read \(") as raised:
            picture.read()
        assert not isinstance(raised.value, BadRow)


def test_a_local_file_that_is_gone_is_a_bad_row_and_a_disk_that_fails_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadRow, match=r"field 'image': a\.png cannot be read"):
        Picture("image", ImageFile("a.png", str(tmp_path / "a.png"))).read()

    def failing(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("hf_accum.data.formats.image_folder.opened", failing)
    with pytest.raises(ValueError, match=r"a.png: cannot be read \(OSError: .*Input/output error") as raised:
        Picture("image", ImageFile("a.png", str(tmp_path / "a.png"))).read()
    assert not isinstance(raised.value, BadRow)


def test_an_image_by_its_path_that_is_changed_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(stored(noise()))
    picture = picture_of({"image": "a.png"}, "image", tmp_path)
    (tmp_path / "a.png").write_bytes(stored(noise(seed=1))[:-1])
    with pytest.raises(ValueError, match=r"a\.png: was changed while the run reads it"):
        open_rgb(picture)


def test_images_that_metadata_does_not_name_are_counted(tmp_path: Path) -> None:
    for name in ("a", "b", "a-mask", "c", "d"):
        (tmp_path / f"{name}.png").write_bytes(stored(noise(4, 4)))
    lines = [{"file_name": f"{name}.png", "mask_file_name": "a-mask.png"} for name in "ab"]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = RecipeConfig(max_steps=1, num_epochs=None)
    how: Any = {"image_column": "image", "mask_column": "mask", "label_names": ("no", "yes"), "ignore_index": 255}
    opened = open_masked_images(str(tmp_path), OneRank(), config, **how)
    assert list(opened.notes_of_files) == ["left out: 2 images that no good row of metadata names (c.png)"]


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_metadata_above_the_folders_of_splits_is_that_of_each(tmp_path: Path, form: str) -> None:
    """A row that names no image at all is bad in each of them."""
    data = tmp_path / "data"
    for split in ("train", "test"):
        write_folder(data / split)
    (tmp_path / "outside.png").write_bytes(stored(noise()))
    names = [*(f"{split}/cat/{n}.png" for split in ("train", "test") for n in (0, 2, 4)), "x.png", "../outside.png"]
    if form == "csv":
        (data / "metadata.csv").write_text("file_name,label\n" + "".join(f"{name},a\n" for name in names))
    else:
        lines = [json.dumps({"file_name": name, "label": "a"}) for name in names]
        (data / "metadata.jsonl").write_text("\n".join(lines))
    for split in ("train", "test"):
        rows = rows_of(data, split)
        good = [row for row in rows if isinstance(row, dict)]
        assert sorted(row["image"].name for row in good) == [f"{split}/cat/{n}.png" for n in (0, 2, 4)]
        assert {row["label"] for row in good} == {"a"}
        bad = sorted(str(row) for row in rows if isinstance(row, BadRow))
        assert [text.partition(": ")[2].partition(" is")[0] for text in bad] == [
            f"metadata.{form}, row 7: 'x.png'",
            f"metadata.{form}, row 8: '../outside.png'",
        ]
        assert open_source(str(data), split).notes == (
            "left out: 3 images that no good row of metadata names (" + f"{split}/dog/1.png)",
        )


def test_metadata_of_a_split_is_stronger_than_that_above(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_folder(tmp_path / split)
    (tmp_path / "metadata.csv").write_text("file_name,label\ntrain/cat/0.png,a\n")
    (tmp_path / "train" / "metadata.csv").write_text("file_name,label\ncat/2.png,b\n")
    assert [(row["image"].name, row["label"]) for row in rows_of(tmp_path)] == [("train/cat/2.png", "b")]


def test_words_in_the_names_of_images_make_no_split(tmp_path: Path) -> None:
    """60 images in two folders of classes, of which some have names as files of splits have."""
    for number in range(60):
        folder = tmp_path / ("cat", "dog")[number % 2]
        folder.mkdir(exist_ok=True)
        odd = {
            0: "train.png",
            11: "train-3.png",
            20: "a_train_b.png",
            31: "test.png",
            40: "val 1.png",
            55: "x-dev.png",
        }
        (folder / odd.get(number, f"{number}.png")).write_bytes(stored(noise(4, 4)))
    assert Counter(row["label"] for row in rows_of(tmp_path)) == {"cat": 30, "dog": 30}
    source = open_source(str(tmp_path), "train")
    assert source.splits == ("train",)
    assert source.notes == ()
