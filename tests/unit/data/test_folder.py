"""Folders of files: which are read, as which split, and that all others are named."""

import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from row_files import as_csv, as_jsonl, read_all, write

from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.folder import files_of, list_files
from hf_accum.data.source import Source, open_source
from hf_accum.data.split import open_split


def put(folder: Path, names: str) -> None:
    """Files of 20 rows each, whose texts are the file's name and the row's number."""
    for name in names.split():
        rows = [{"text": f"{name} {i}", "label": "yes"} for i in range(20)]
        table = [["text", "label"], *(list(row.values()) for row in rows)]
        suffix = name.rpartition(".")[2]
        if suffix == "parquet":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows), folder / name)
        else:
            contents = {"jsonl": as_jsonl(rows), "csv": as_csv(table), "tsv": as_csv(table, "\t")}
            write(folder, name, contents.get(suffix, b"".join(row["text"].encode() + b"\n" for row in rows)))


def texts(source: Source) -> list[str]:
    return sorted(row["text"] for shard in range(source.num_shards) for _, row in read_all(source, shard))


def expected(names: str) -> list[str]:
    return sorted(f"{name} {i}" for name in names.split() for i in range(20))


NO_SPLIT = (
    "ward_test.csv is no split by its name, and read with the others: a split's name is that of the whole file or "
    "folder (test.csv, test/)"
)
MANY = "files of several formats are read as one: "
FOLDERS: dict[str, tuple[str, Mapping[str, str], tuple[str, ...]]] = {  # files, splits, what is said
    "one more ward": ("ward_a.csv ward_b.csv ward_train.csv", {"train": "ward_a.csv ward_b.csv ward_train.csv"}, ()),
    "several formats": ("a.csv b.csv c.jsonl", {"train": "a.csv b.csv c.jsonl"}, (f"{MANY}2 csv, 1 json",)),
    "three formats": (
        "a.csv b.tsv c.jsonl d.parquet",
        {"train": "a.csv b.tsv c.jsonl d.parquet"},
        (f"{MANY}2 csv, 1 json, 1 parquet",),
    ),
    "whole names": ("train.csv test.csv", {"train": "train.csv", "test": "test.csv"}, ()),
    "other words": ("Training.csv dev.csv", {"train": "Training.csv", "validation": "dev.csv"}, ()),
    "shards": (
        "train-00000-of-00002.parquet train-00001-of-00002.parquet val-00000-of-00001.parquet",
        {
            "train": "train-00000-of-00002.parquet train-00001-of-00002.parquet",
            "validation": "val-00000-of-00001.parquet",
        },
        (),
    ),
    "shards of a split of their own": (
        "data/wards-00000-of-00001.csv data/train-00000-of-00001.csv",
        {"wards": "data/wards-00000-of-00001.csv", "train": "data/train-00000-of-00001.csv"},
        (),
    ),
    "folders": (
        "train/a.csv train/test_a.csv test/a.csv",
        {"train": "train/a.csv train/test_a.csv", "test": "test/a.csv"},
        (),
    ),
    "a file beside": (
        "train.csv extra.csv notes.doc",
        {"train": "train.csv"},
        ("left out: 2 files in the folder, extra.csv, notes.doc",),
    ),
    "another format beside": ("a.csv codes.txt", {"train": "a.csv"}, ("left out: 1 file in the folder, codes.txt",)),
    "a word that is not train": (
        "ward_a.csv ward_test.csv",
        {"train": "ward_a.csv ward_test.csv"},
        (NO_SPLIT,),
    ),
    "names that differ by the split": (
        "heart_train.csv heart_test.csv",
        {"train": "heart_train.csv", "test": "heart_test.csv"},
        (),
    ),
    "texts": ("ward_a.txt ward_train.txt", {"train": "ward_a.txt ward_train.txt"}, ()),
    "descriptions": ("a.csv README.md LICENSE .hidden.csv __pycache__/x.csv", {"train": "a.csv"}, ()),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_all_files_are_read_or_named(tmp_path: Path, kind: str) -> None:
    names, splits, notes = FOLDERS[kind]
    put(tmp_path, names)
    for split, of_split in splits.items():
        source = open_source(str(tmp_path), split)
        assert texts(source) == expected(of_split)
        assert set(source.splits) == set(splits)
        assert source.notes == notes


def test_the_columns_of_each_file_are_looked_at(tmp_path: Path) -> None:
    put(tmp_path, "a.csv b.jsonl")
    write(tmp_path, "c.csv", b"note,label\na,yes\n")
    with pytest.raises(ValueError, match=r"in .*c.csv has no column 'text': it has note, label"):
        open_source(str(tmp_path), "train", columns=("text", "label"))


def test_splits_that_are_not_used_are_said(tmp_path: Path) -> None:
    put(tmp_path, "train.csv test.csv dev.csv extra.csv")
    for eval_split, unused in ((None, "test, validation"), ("test", "validation")):
        config = RecipeConfig(eval_split=eval_split)
        left_out, note = open_split(str(tmp_path), ["text"], config, group_column="text").notes_of_files
        assert left_out == "left out: 1 file in the folder, extra.csv"
        assert note == f"splits of the dataset that are not used: {unused} (`eval_split` evaluates on one)"


def describe(folder: Path) -> None:
    configs = [{"config_name": name, "data_files": f"{name}/*.csv"} for name in ("heart", "lung")]
    (folder / "README.md").write_text(f"---\n{json.dumps({'configs': configs})}\n---\n")


def test_a_configuration_is_chosen_by_name(tmp_path: Path) -> None:
    put(tmp_path, "heart/a.csv lung/b.csv other/c.csv")
    describe(tmp_path)
    source = open_source(str(tmp_path), "train", config="lung")
    assert texts(source) == expected("lung/b.csv")
    assert source.notes == ("left out: 2 files in the folder, heart/a.csv, other/c.csv",)
    with pytest.raises(ValueError, match=r"give one of its configurations by `dataset_config` .*heart.*lung"):
        open_source(str(tmp_path), "train")
    with pytest.raises(ValueError, match=r"give one of its configurations by `dataset_config` .*liver"):
        open_source(str(tmp_path), "train", config="liver")
    for dataset in (tmp_path / "heart", tmp_path / "heart" / "a.csv"):
        with pytest.raises(ValueError, match=r"`dataset_config` x: has to be left out with .*which describes none"):
            open_source(str(dataset), "train", config="x")


def test_all_files_of_an_archive_are_read(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "notes.zip", "w") as archive:
        archive.writestr("notes.csv", "text,label\na,yes\n")
        archive.writestr("more/notes.csv", "text,label\nb,yes\n")
    (tmp_path / "codes.doc").write_text("x")
    source = open_source(str(tmp_path), "train")
    assert texts(source) == ["a", "b"]
    assert source.notes == ("left out: 1 file in the folder, codes.doc",)


def test_folders_that_lie_in_themselves_are_listed_once(tmp_path: Path) -> None:
    put(tmp_path, "a/b.csv")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert list_files(str(tmp_path)) == ["a/b.csv"]


NAMES = st.sampled_from(["train", "test", "a", "ward_train", "x-test", "train-00000-of-00001", "dev 1", "b.c", "Val"])
SUFFIXES = st.sampled_from([".csv", ".jsonl.gz", ".png", ".txt", ".zip", ""])
PATHS = st.tuples(st.lists(st.sampled_from(["train", "test", "cat"]), max_size=2), NAMES, SUFFIXES)


@given(st.sets(PATHS.map(lambda path: "/".join([*path[0], path[1] + path[2]])), min_size=1, max_size=6))
def test_each_file_is_of_one_split_or_left_out(tmp_path_factory: pytest.TempPathFactory, paths: set[str]) -> None:
    folder = tmp_path_factory.mktemp("data")
    kept = {path for path in paths if not any(other.startswith(f"{path}/") for other in paths)}
    for path in kept:
        write(folder, path, b"")
    found = files_of(str(folder))
    assert sorted([*found.left_out, *found.above, *(f for files in found.splits.values() for f in files)]) == sorted(
        kept
    )
