"""Rows of single files: what is written is read, from any row on; a bad row is bad alone."""

import bz2
import gzip
import json
import lzma
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from row_files import GOOD, as_csv, as_jsonl, check_bad_row, prepare, prepared, read_all, write

from hf_accum.data.source import good_rows, open_source

texts = st.text(st.characters(exclude_categories=["Cs"]))


json_values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts | st.lists(texts)


seeks = st.integers(0, 12)


def check_rows_and_seek(file: str, rows: Sequence[Any], start: int) -> None:
    source = open_source(file, "train")
    everything = read_all(source)
    assert everything == list(enumerate(rows))
    assert read_all(source, start=start) == everything[start:]


@given(rows=st.lists(st.fixed_dictionaries({"text": texts, "label": json_values}), max_size=10), start=seeks)
def test_json_lines_come_back_from_any_row_on(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], start: int
) -> None:
    file = write(tmp_path_factory.mktemp("rows"), "rows.jsonl", as_jsonl(rows))
    check_rows_and_seek(file, rows, start)


@given(
    rows=st.lists(st.lists(texts, min_size=2, max_size=2), max_size=10),
    start=seeks,
    suffix=st.sampled_from((".csv", ".tsv")),
)
@example(rows=[["a\r\nb\rc\n", '"x",\t\0\u2028'], ["", ""]], start=1, suffix=".csv")
def test_csv_rows_come_back_from_any_row_on(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], start: int, suffix: str
) -> None:
    """Any text: quotes, separators, line breaks of all kinds, NUL."""
    content = as_csv([["text", "label"], *rows], "," if suffix == ".csv" else "\t")
    file = write(tmp_path_factory.mktemp("rows"), f"rows{suffix}", content)
    check_rows_and_seek(file, [{"text": text, "label": label} for text, label in rows], start)


parquet_rows = st.lists(
    st.fixed_dictionaries({"text": st.none() | texts, "label": st.none() | st.integers(-(2**63), 2**63 - 1)}),
    max_size=10,
)


@given(rows=parquet_rows, start=seeks, group_size=st.integers(1, 4))
def test_parquet_rows_come_back_from_any_row_on(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], start: int, group_size: int
) -> None:
    """Seeking skips whole row groups, and rows within one."""
    file = tmp_path_factory.mktemp("rows") / "rows.parquet"
    schema = pa.schema([("text", pa.string()), ("label", pa.int64())])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), file, row_group_size=group_size)
    check_rows_and_seek(str(file), rows, start)


def test_parquet_rows_of_many_batches_come_back_from_any_row_on(tmp_path: Path) -> None:
    """A row group of more rows than are decoded at once."""
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"number": range(5000)}), file, row_group_size=3000)
    source = open_source(str(file), "train")
    for start in (0, 1023, 1024, 2999, 3000, 3001, 4999, 5000):
        assert read_all(source, start=start) == [(i, {"number": i}) for i in range(start, 5000)]


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.tsv", "rows.json"])
def test_compressed_files_are_read(
    tmp_path: Path, name: str, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    rows = [{"text": f"a note, {i}\n\tof two lines", "label": "yes"} for i in range(3)]
    table = [["text", "label"], *(list(row.values()) for row in rows)]
    content = {
        "rows.jsonl": as_jsonl(rows),
        "rows.csv": as_csv(table),
        "rows.tsv": as_csv(table, "\t"),
        "rows.json": json.dumps(rows).encode(),
    }[name]
    source = open_source(write(tmp_path, name + suffix, compress(content)), "train")
    assert read_all(source) == list(enumerate(rows))
    assert read_all(source, start=2) == [(2, rows[2])]
    assert source.names == (name + suffix,)


@pytest.mark.parametrize("quoted", [True, False])
def test_csv_holds_clinical_notes_above_128_kib(tmp_path: Path, quoted: bool) -> None:
    note = "fever; " * 50_000 + ("\ncough, and more" if quoted else "")
    file = write(tmp_path, "notes.csv", as_csv([["text", "label"], [note, "no"], ["short", "yes"]]))
    assert prepared(open_source(file, "train")) == [(0, (note, 0)), (1, ("short", 1))]


def test_csv_line_breaks_of_windows_and_old_macs(tmp_path: Path) -> None:
    for content in (b"text,label\r\na,no\r\nb,yes\r\n", b"text,label\ra,no\rb,yes"):
        file = write(tmp_path, "rows.csv", content)
        assert prepared(open_source(file, "train")) == [(0, ("a", 0)), (1, ("b", 1))]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    bom = b"\xef\xbb\xbf"
    row = {"text": "a", "label": "yes"}
    contents = {
        "bom.csv": as_csv([["text", "label"], ["a", "yes"]]),
        "bom.jsonl": as_jsonl([row]),
        "bom.json": json.dumps([row]).encode(),
    }
    for name, content in contents.items():
        assert prepared(open_source(write(tmp_path, name, bom + content), "train")) == [(0, ("a", 1))]


@pytest.mark.parametrize("before", ["", "\n \t"])
def test_a_json_array_is_read_row_by_row(tmp_path: Path, before: str) -> None:
    rows = [{"text": "a", "label": "yes"}, {"text": "b", "label": "no"}]
    source = open_source(write(tmp_path, "rows.json", f"{before}{json.dumps(rows, indent=1)}".encode()), "train")
    assert read_all(source) == list(enumerate(rows))
    assert read_all(source, start=1) == [(1, rows[1])]


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    """Of JSON lines the numbers stay those of the file's lines, so that an editor finds them."""
    lines = b'{"text": "a", "label": "no"}\n\n  \t\r\n{"text": "b", "label": "yes"}\n\n'
    source = open_source(write(tmp_path, "rows.jsonl", lines), "train")
    assert [number for number, _ in read_all(source)] == [0, 3]
    assert [number for number, _ in read_all(source, start=1)] == [3]
    file = write(tmp_path, "rows.csv", b"\ntext,label\n\na,no\n\n\nb,yes\n\n")
    assert prepared(open_source(file, "train")) == [(0, ("a", 0)), (1, ("b", 1))]


def test_a_file_without_rows_has_none(tmp_path: Path) -> None:
    empty = {"a.jsonl": b"", "a.csv": b"", "b.csv": b"text,label\n", "a.json": b"[]"}
    for name, content in empty.items():
        assert read_all(open_source(write(tmp_path, name, content), "train")) == []


BAD_OBJECTS: dict[str, tuple[Any, str, str]] = {  # the row, its bad field, a part of what is said
    "no text column": ({"label": "yes"}, "text", "no such column; the row has label"),
    "no label column": ({"text": "a"}, "label", "no such column; the row has text"),
    "an empty object": ({}, "text", "no such column; the row has none"),
    "null text": (GOOD | {"text": None}, "text", "null or NaN"),
    "null label": (GOOD | {"label": None}, "label", "null or NaN"),
    "NaN text": (GOOD | {"text": math.nan}, "text", "null or NaN"),
    "NaN label": (GOOD | {"label": math.nan}, "label", "null or NaN"),
    "empty text": (GOOD | {"text": ""}, "text", "empty text"),
    "blank text": (GOOD | {"text": " \n\t\u00a0"}, "text", "empty text"),
    "a number as text": (GOOD | {"text": 7}, "text", "7 is of type int, not a text"),
    "half a surrogate pair": (GOOD | {"text": "a\ud83d"}, "text", "not UTF-8"),
    "unknown label": (GOOD | {"label": "maybe"}, "label", "'maybe' is out of range: it is none of 0=no, 1=yes"),
    "label number too high": (GOOD | {"label": 2}, "label", "'2' is out of range"),
    "label number below 0": (GOOD | {"label": -1}, "label", "'-1' is out of range"),
    "broken label number": (GOOD | {"label": 0.5}, "label", "0.5 is neither the name nor the number"),
    "empty label": (GOOD | {"label": ""}, "label", "neither the name nor the number"),
}


BAD_LINES: dict[str, tuple[bytes, str, str]] = {
    **{name: (json.dumps(row).encode(), field, said) for name, (row, field, said) in BAD_OBJECTS.items()},
    "not UTF-8": (b'{"text": "caf\xe9", "label": "no"}', "", "not UTF-8 (byte 14 of the line)"),
    "half a line": (b'{"text": "a", "la', "", "not JSON ("),
    "no JSON": (b"text: a", "", "not JSON (Expecting value, column 1)"),
    "two values": (b'{"text": "a"} {}', "", "not JSON (Extra data, column 15)"),
    "an array": (b'["a", "no"]', "", "a JSON list, not an object"),
    "a number": (b"3", "", "a JSON int, not an object"),
    "null": (b"null", "", "a JSON NoneType, not an object"),
    "a number without end": (b'{"text": ' + b"9" * 5000 + b"}", "", "not JSON that can be read"),
    "brackets without end": (b'{"text": ' * 100_000, "", "not JSON that can be read"),
}


BAD_CSV_LINES: dict[str, tuple[bytes, str, str]] = {
    "too few fields": (b"fine", "label", "the row has fewer fields than the header"),
    "too many fields": (b"fine,yes,1,2", "", "2 more fields than the header"),
    "empty text": (b",yes", "text", "empty text"),
    "blank text": (b'"\n ",yes', "text", "empty text"),
    "empty label": (b"fine,", "label", "neither the name nor the number"),
    "unknown label": (b"fine,maybe", "label", "'maybe' is out of range"),
    "text that is not UTF-8": (b"caf\xe9,yes", "text", "not UTF-8"),
    "label that is not UTF-8": (b"fine,\xff", "label", "not UTF-8"),
}


@pytest.mark.parametrize("kind", BAD_LINES)
@pytest.mark.parametrize("compressed", [False, True])
def test_bad_json_lines(tmp_path: Path, kind: str, compressed: bool) -> None:
    line, field, said = BAD_LINES[kind]
    good = json.dumps(GOOD).encode()
    content = b"\n".join([good, b"", good, line, good])
    content, name = (gzip.compress(content), "rows.jsonl.gz") if compressed else (content, "rows.jsonl")
    check_bad_row(open_source(write(tmp_path, name, content), "train"), 3, field, said, [0, 2, 4])


@pytest.mark.parametrize("kind", BAD_OBJECTS)
def test_bad_objects_of_a_json_array(tmp_path: Path, kind: str) -> None:
    row, field, said = BAD_OBJECTS[kind]
    file = write(tmp_path, "rows.json", json.dumps([GOOD, row, GOOD]).encode())
    check_bad_row(open_source(file, "train"), 1, field, said, [0, 2])


def test_a_json_array_of_something_else(tmp_path: Path) -> None:
    file = write(tmp_path, "rows.json", json.dumps([GOOD, [1], GOOD]).encode())
    check_bad_row(open_source(file, "train"), 1, "", "a JSON list, not an object", [0, 2])


def test_a_list_in_each_line(tmp_path: Path) -> None:
    """As spaCy 2 was trained."""
    file = write(tmp_path, "rows.jsonl", b'["fever", {"entities": []}]\n["cough", {"entities": []}]\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl: begins with a list, .* objects, each in a line of its own"):
        list(open_source(file, "train").read(0, 0))


@pytest.mark.parametrize("kind", BAD_CSV_LINES)
@pytest.mark.parametrize("compressed", [False, True])
def test_bad_csv_rows(tmp_path: Path, kind: str, compressed: bool) -> None:
    """Rows are counted as rows: the note of two lines before the bad one is one."""
    line, field, said = BAD_CSV_LINES[kind]
    content = b"\n".join([b"text,label", b"fine,yes", b'"two\nlines",no', line, b"fine,yes", b""])
    content, name = (gzip.compress(content), "rows.csv.gz") if compressed else (content, "rows.csv")
    check_bad_row(open_source(write(tmp_path, name, content), "train"), 2, field, said, [0, 1, 3])


def test_a_csv_file_without_the_label_column(tmp_path: Path) -> None:
    source = open_source(write(tmp_path, "rows.csv", b",text\n0,a\n1,b\n"), "train")
    with pytest.raises(ValueError, match=r"rows.csv, row 1: field 'label': no such column; the row has text;"):
        prepared(source)
    bad_rows: Counter[str] = Counter()
    assert list(good_rows(source, 0, 0, prepare, "skip", bad_rows)) == []
    assert list(bad_rows.values()) == [2]


PARQUET_KINDS = [
    kind
    for kind, (row, *_) in BAD_OBJECTS.items()
    if "column" not in kind
    and kind not in ("an empty object", "half a surrogate pair", "a number as text", "NaN text")
    and isinstance(row["label"], str | None)
]


@pytest.mark.parametrize("kind", PARQUET_KINDS)
def test_bad_parquet_rows(tmp_path: Path, kind: str) -> None:
    row, field, said = BAD_OBJECTS[kind]
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([GOOD, GOOD, row, GOOD]), file, row_group_size=2)
    check_bad_row(open_source(str(file), "train", columns=("text", "label")), 2, field, said, [0, 1, 3])


@pytest.mark.parametrize(
    ("value", "said"),
    [(math.nan, "null or NaN"), (None, "null or NaN"), (2.0, "'2' is out of"), (0.5, "0.5 is ")],
)
def test_bad_numbers_in_parquet(tmp_path: Path, value: float | None, said: str) -> None:
    """A column of floats, as pandas makes it of integers where one is missing."""
    file = tmp_path / "rows.parquet"
    labels = pa.array([0.0, value, 1.0], pa.float64(), from_pandas=False)
    pq.write_table(pa.table({"text": ["a", "b", "c"], "label": labels}), file)
    check_bad_row(open_source(str(file), "train"), 1, "label", said, [0, 2])


def test_parquet_text_that_is_not_utf8(tmp_path: Path) -> None:
    as_bytes = pa.array([b"a", b"caf\xe9", b"c"], pa.binary())
    texts = pa.Array.from_buffers(pa.string(), 3, as_bytes.buffers())
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": texts, "label": ["yes", "no", "no"]}), file)
    check_bad_row(open_source(str(file), "train"), 1, "text", "not UTF-8", [0, 2])


def test_a_parquet_time_beyond_the_calendar_is_bad_alone(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    times = pa.array([0, 2**62, 0], pa.timestamp("us"))
    pq.write_table(pa.table({"text": ["a", "b", "c"], "label": ["no", "yes", "no"], "seen": times}), file)
    check_bad_row(open_source(str(file), "train"), 1, "seen", "cannot be read (", [0, 2])
