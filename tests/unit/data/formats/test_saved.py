"""Folders of `save_to_disk`: their rows from any one on, and no file outside of them."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, load_from_disk
from row_files import read_all

from hf_accum.data.source import open_source

ROWS = [{"text": f"note {i}", "label": i % 2} for i in range(20)]


def saved() -> Dataset:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    return Dataset.from_list(ROWS, features=features)


@pytest.mark.parametrize("num_shards", [1, 3])
def test_rows_come_back_from_any_row_on(tmp_path: Path, num_shards: int) -> None:
    saved().save_to_disk(tmp_path / "notes", num_shards=num_shards)
    source = open_source(str(tmp_path / "notes"), "train", columns=("text", "label"))
    assert read_all(source) == list(enumerate(ROWS))
    for start in (1, 7, 19, 20, 25):
        assert read_all(source, start=start) == list(enumerate(ROWS))[start:]
    assert source.class_names == {"label": ("no", "yes")}


def test_a_selection_is_saved_in_its_order_and_splits_by_their_names(tmp_path: Path) -> None:
    chosen = saved().shuffle(seed=0).select(range(9))
    DatasetDict({"train": saved(), "test": chosen}).save_to_disk(tmp_path / "notes")
    source = open_source(str(tmp_path / "notes"), "test")
    assert [row for _, row in read_all(source)] == list(chosen)
    assert source.splits == ("train", "test")
    with pytest.raises(ValueError, match=r"has no split 'dev': it has train, test"):
        open_source(str(tmp_path / "notes"), "dev")
    with pytest.raises(ValueError, match=r"has no column 'note': it has text, label"):
        open_source(str(tmp_path / "notes"), "train", columns=("note",))


def test_pictures_are_not_decoded(tmp_path: Path) -> None:
    """Nor are paths in rows followed."""
    rows = [{"image": {"bytes": None, "path": "/etc/passwd"}}]
    Dataset.from_list(
        rows, features=Features({"image": {"bytes": Value("binary"), "path": Value("string")}})
    ).save_to_disk(tmp_path / "notes")
    described = json.loads((tmp_path / "notes" / "dataset_info.json").read_text())
    described["features"] = {"image": {"_type": "Image"}}
    (tmp_path / "notes" / "dataset_info.json").write_text(json.dumps(described))
    stored: Any = load_from_disk(tmp_path / "notes")
    assert isinstance(stored.features["image"], Image)
    assert read_all(open_source(str(tmp_path / "notes"), "train")) == list(enumerate(rows))


def test_no_file_outside_is_read_and_a_broken_folder_is_named(tmp_path: Path) -> None:
    saved().save_to_disk(tmp_path / "notes")
    saved().save_to_disk(tmp_path / "secret")
    state = tmp_path / "notes" / "state.json"
    described = json.loads(state.read_text())
    described["_data_files"][0]["filename"] = "../secret/data-00000-of-00001.arrow"
    state.write_text(json.dumps(described))
    with pytest.raises(ValueError, match=r"names a file outside of it, .*secret"):
        open_source(str(tmp_path / "notes"), "train")
    state.write_text("{")
    with pytest.raises(ValueError, match=r"its state.json cannot be read"):
        open_source(str(tmp_path / "notes"), "train")
    data = tmp_path / "secret" / "data-00000-of-00001.arrow"
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"secret: cannot be read"):
        open_source(str(tmp_path / "secret"), "train")
