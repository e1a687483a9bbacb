"""A source of rows: bad rows named or counted, what can be opened, and streams of datasets."""

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, IterableDataset, Value
from row_files import GOOD, as_csv, as_jsonl, check_bad_row, prepare, prepared, read_all, write

from hf_accum.data.source import Row, good_rows, of_dataset, open_source
from hf_accum.tasks.labels import LabelColumn

# Bad rows


def test_rows_left_out_by_prepare_are_not_bad(tmp_path: Path) -> None:
    source = open_source(write(tmp_path, "rows.jsonl", as_jsonl([{"n": i} for i in range(6)])), "train")
    bad_rows: Counter[str] = Counter()
    kept = good_rows(source, 0, 0, lambda row: row["n"] if row["n"] % 2 else None, "error", bad_rows)
    assert list(kept) == [(1, 1), (3, 3), (5, 5)]
    assert not bad_rows


def test_an_error_of_prepare_itself_is_not_taken_for_a_bad_row(tmp_path: Path) -> None:
    source = open_source(write(tmp_path, "rows.jsonl", as_jsonl([GOOD])), "train")

    def broken(row: Row) -> str:
        raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"):
        list(good_rows(source, 0, 0, broken, "skip", Counter()))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        # No time stamp: the test's name holds these bytes, and has to be the same for every worker of pytest.
        ("rows.csv.gz", gzip.compress(b"text,label\n" + b"a,yes\n" * 9, mtime=0)[:-12], "EOFError"),
        ("rows.jsonl.gz", as_jsonl([GOOD]), "BadGzipFile"),
        ("rows.json", json.dumps([GOOD]).encode()[:-1], "JSONDecodeError"),
        ("rows.json", b'[{"text": "caf\xe9"}]', "UnicodeDecodeError"),
    ],
)
def test_a_file_that_breaks_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    file = write(tmp_path, name, content)
    with pytest.raises(ValueError, match=rf"{name}:? cannot be read \({said}"):
        prepared(open_source(file, "train"))


# What can be opened


def test_a_folder_with_splits(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl", as_jsonl([GOOD, GOOD | {"text": ""}]))
    write(tmp_path, "validation.jsonl", as_jsonl([GOOD | {"text": "held out"}]))
    train = open_source(str(tmp_path), "train")
    assert train.names == ("train.jsonl",)
    check_bad_row(train, 1, "text", "empty text", [0])
    assert prepared(open_source(str(tmp_path), "validation")) == [(0, ("held out", 1))]
    with pytest.raises(ValueError, match=r"has no split 'test': it has train, validation"):
        open_source(str(tmp_path), "test")


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        ("csv", as_csv([["text", "label"], ["a, b", "yes"], ["c", "maybe"], ["d", "no"]])),
        ("tsv", as_csv([["text", "label"], ["a, b", "yes"], ["c", "maybe"], ["d", "no"]], "\t")),
        ("jsonl", as_jsonl([GOOD | {"text": "a, b"}, GOOD | {"label": "maybe"}, GOOD])),
    ],
)
def test_rows_of_a_folder_are_named_as_those_of_a_file_are(tmp_path: Path, suffix: str, content: bytes) -> None:
    write(tmp_path, f"train.{suffix}", content)
    source = open_source(str(tmp_path), "train")
    assert source.names == (f"train.{suffix}",)
    assert next(good_rows(source, 0, 0, prepare, "error", Counter())) == (0, ("a, b", 1))
    check_bad_row(source, 1, "label", "'maybe' is out of range", [0, 2])


def test_a_folder_of_several_files_has_a_shard_for_each(tmp_path: Path) -> None:
    for part in range(3):
        rows = [{"part": part, "row": row} for row in range(part + 1)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"train-{part:05}-of-00003.parquet")
    source = open_source(str(tmp_path), "train", columns=("part",))
    assert source.num_shards == 3
    assert source.names == tuple(f"train-{part:05}-of-00003.parquet" for part in range(3))
    for part in range(3):
        assert read_all(source, part) == [(row, {"part": part}) for row in range(part + 1)]


def test_files_of_one_name_in_two_folders_are_told_apart(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write(tmp_path, f"train/{folder}/notes.csv", as_csv([["text", "label"], [folder, "yes"]]))
    source = open_source(str(tmp_path), "train")
    assert source.names == ("one/notes.csv", "two/notes.csv")
    assert [read_all(source, shard)[0][1]["text"] for shard in range(2)] == ["one", "two"]


def test_other_formats_are_streamed_by_datasets(tmp_path: Path) -> None:
    write(tmp_path, "train.txt", b"one note\nanother\n")
    source = open_source(str(tmp_path), "train")
    assert read_all(source) == [(0, {"text": "one note"}), (1, {"text": "another"})]
    assert read_all(source, start=1) == [(1, {"text": "another"})]


def test_only_the_columns_asked_for_are_read_from_parquet(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": ["a"], "label": ["yes"], "pixels": [b"\xff" * 9]}), file)
    assert read_all(open_source(str(file), "train", columns=("label", "text"))) == [
        (0, {"text": "a", "label": "yes"})
    ]


def write_class_labels(path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["mild", "severe"])})
    Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features).to_parquet(path)


def test_class_names_of_a_parquet_column(tmp_path: Path) -> None:
    write_class_labels(tmp_path / "train.parquet")
    for dataset in (tmp_path / "train.parquet", tmp_path):
        source = open_source(str(dataset), "train", columns=("text", "label"))
        assert source.class_names == {"label": ("mild", "severe")}
        names = source.class_names["label"]
        column = LabelColumn("label", "single_label_classification", names, class_names=names)
        assert [column.keys(row) for _, row in read_all(source)] == [("severe",), ("mild",)]


CARD = """---
dataset_info:
  features:
  - name: text
    dtype: string
  - name: label
    dtype:
      class_label:
        names:
          '0': mild
          '1': severe
  splits:
  - name: train
---
"""


def test_class_names_that_only_the_dataset_card_has(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), tmp_path / "train.parquet")
    (tmp_path / "README.md").write_text(CARD)
    source = open_source(str(tmp_path), "train", columns=("text", "label"))
    assert source.class_names == {"label": ("mild", "severe")}


@pytest.mark.parametrize("described", [False, True])
def test_a_column_that_parquet_does_not_have(tmp_path: Path, described: bool) -> None:
    """Also where a dataset card describes the columns."""
    write_class_labels(tmp_path / "train.parquet")
    if described:
        (tmp_path / "README.md").write_text(CARD)
    with pytest.raises(ValueError, match=r"has no column 'note': it has text, label"):
        open_source(str(tmp_path), "train", columns=("note", "label"))


@pytest.mark.parametrize("name", ["notes.txt", "notes", "notes.xls", "notes.csv.zip"])
def test_a_file_of_another_format(tmp_path: Path, name: str) -> None:
    file = write(tmp_path, name, b"text,label\n")
    with pytest.raises(ValueError, match=rf"{name}': a file has to be .jsonl, .json, .csv, .tsv, .parquet or .xlsx"):
        open_source(file, "train")


def test_a_parquet_file_that_is_none(tmp_path: Path) -> None:
    file = write(tmp_path, "rows.parquet", b"text,label\n")
    with pytest.raises(ValueError, match=r"rows.parquet cannot be read \(ArrowInvalid"):
        open_source(file, "train", columns=("text",))


def test_a_file_has_no_other_split(tmp_path: Path) -> None:
    file = write(tmp_path, "rows.jsonl", as_jsonl([GOOD]))
    with pytest.raises(ValueError, match=r"rows.jsonl' has no split 'validation': it has train"):
        open_source(file, "validation")


@pytest.mark.parametrize("dataset", ["./notes.csv", "/no/such/folder", "~/notes.csv", "a/b/c.csv"])
def test_a_path_to_nothing_is_not_looked_for_on_the_hub(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"dataset '{dataset}': no such file or folder"):
        open_source(dataset, "train")


@pytest.mark.parametrize("dataset", ["notes.csv", "someone/notes", "empty"])
def test_nothing_to_be_had_under_a_name(dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"dataset '{dataset}': neither a local file or folder with data in it"):
        open_source(dataset, "train")


# Streams of datasets


def numbers(starts: list[int]) -> Iterator[dict[str, int]]:
    for start in starts:
        yield from ({"number": start + i} for i in range(start // 10 + 2))


def test_a_streamed_dataset_of_several_shards() -> None:
    stream = IterableDataset.from_generator(numbers, gen_kwargs={"starts": [0, 10, 20]})
    assert isinstance(stream, IterableDataset)
    source = of_dataset(stream, {"label": ("a", "b")})
    assert source.names == ("shard 0", "shard 1", "shard 2")
    assert source.class_names == {"label": ("a", "b")}
    for shard in range(3):
        rows = [(i, {"number": 10 * shard + i}) for i in range(shard + 2)]
        assert read_all(source, shard) == rows
        for start in range(len(rows) + 2):
            assert read_all(source, shard, start) == rows[start:]


def test_a_bad_row_of_a_streamed_dataset_names_its_shard() -> None:
    source = of_dataset(Dataset.from_list([GOOD, GOOD | {"text": ""}, GOOD]).to_iterable_dataset())
    check_bad_row(source, 1, "text", "empty text", [0, 2])
