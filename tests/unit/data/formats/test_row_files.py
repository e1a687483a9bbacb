"""Files of rows by their formats: their columns are known when they are opened."""

from collections import Counter
from pathlib import Path

import pytest
from row_files import as_jsonl, prepare, read_all, write

from hf_accum.data.formats.row_files import format_of
from hf_accum.data.source import good_rows, open_source


def test_json_lines_whose_types_change_are_read_as_they_are(tmp_path: Path) -> None:
    values = [1, "1", None, [1], {"a": 1}, 1.5, True]
    rows = [{"text": f"note {i}", "label": "yes", "more": values[i % len(values)]} for i in range(20)]
    source = open_source(write(tmp_path, "rows.jsonl", as_jsonl(rows)), "train", columns=("text", "label"))
    assert [row for _, row in read_all(source)] == rows
    assert [row for _, row in read_all(source, start=13)] == rows[13:]


def test_a_column_that_no_object_has_is_said_of_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "rows.jsonl", as_jsonl([{"note": "a", "label": 1}] * 30))
    with pytest.raises(ValueError, match=r"rows.jsonl' has no column 'text': it has note, label$"):
        open_source(file, "train", columns=("text", "label"))


def test_a_column_that_some_objects_lack_is_said_of_them(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "yes"}, *[{"label": "yes"}], *[{"text": "a", "label": "yes"}] * 18]
    source = open_source(write(tmp_path, "rows.jsonl", as_jsonl(rows)), "train", columns=("text", "label"))
    bad_rows: Counter[str] = Counter()
    assert len(list(good_rows(source, 0, 0, prepare, "skip", bad_rows))) == 19
    assert bad_rows == {"field 'text': no such column; the row has label": 1}


def test_the_format_is_that_of_the_name() -> None:
    names = {"a.jsonl": "json", "a.CSV": "csv", "a.tsv.gz": "csv", "a.xlsx": "excel", "a.parquet": "parquet"}
    assert {name: format_of(name) for name in names} == names
    assert format_of("a.txt") is format_of("a.gz") is format_of("a") is None
