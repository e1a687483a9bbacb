"""A file of rows that is written part by part: whole or not there, the same in each format, gone on with."""

import csv
import datetime
import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hf_accum.errors import UserError
from hf_accum.run import row_output
from hf_accum.run.row_output import Place, RowOutput

FACTS = {"run": [["model.safetensors", 1, 2]], "split": "train"}
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.text(st.characters(exclude_categories=["Cs"]))
)
ROWS = st.lists(st.dictionaries(st.text("abc", min_size=1), VALUES, max_size=3), min_size=1, max_size=12)


def fill(output: RowOutput, rows: list[dict[str, Any]], start: int = 0) -> None:
    for number in range(start, len(rows), 3):
        part = rows[number : number + 3]
        added = [
            {"prediction": str(number + at), "probabilities": {"no": 0.25, "yes": 0.75}} for at in range(len(part))
        ]
        output.add(list(zip(part, added, strict=True)), Place(number=number + len(part), num_rows=number + len(part)))


@given(rows=ROWS, ended=st.integers(0, 12))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_json_lines_hold_what_was_given_wherever_they_were_gone_on_with(
    rows: list[dict[str, Any]], ended: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("rows") / "out.jsonl"
    ended = min(ended - ended % 3, len(rows))
    fill(RowOutput(path, FACTS), rows[:ended])
    again = RowOutput(path, FACTS)
    assert (again.place.num_rows, again.goes_on) == (ended, ended > 0)
    fill(again, rows, ended)
    again.finish()
    told = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    assert [{name: value for name, value in row.items() if not name.startswith("pr")} for row in told] == rows
    assert [row["prediction"] for row in told] == [str(number) for number in range(len(rows))]
    assert [file.name for file in path.parent.iterdir()] == ["out.jsonl"]


def test_csv_has_all_columns_in_each_row(tmp_path: Path) -> None:
    output = RowOutput(tmp_path / "out.csv", FACTS)
    fill(output, [{"a": 'says "no"\nand goes', "b": 1}, {"a": "x, y"}, {"c": [1, 2]}, {"a": None}])
    output.finish()
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["a"] for row in rows] == ['says "no"\nand goes', "x, y", "", ""]
    assert [row["c"] for row in rows] == ["", "", "[1, 2]", ""]
    assert [row["probabilities.yes"] for row in rows] == ["0.75"] * 4


def test_parquet_keeps_types_and_takes_a_column_that_comes_late(tmp_path: Path) -> None:
    day = datetime.datetime(2026, 1, 2, 3, 4)
    rows = [{"day": day, "n": None}, {"day": None}, {"day": day, "n": None}, {"n": 1}, {"n": 2.5, "raw": b"\x00"}]
    output = RowOutput(tmp_path / "out.parquet", FACTS)
    fill(output, rows[:3])
    again = RowOutput(tmp_path / "out.parquet", FACTS)
    fill(again, rows, 3)
    again.finish()
    told = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [{name: row[name] for name in ("day", "n", "raw")} for row in told] == [
        {"day": row.get("day"), "n": row.get("n"), "raw": row.get("raw")} for row in rows
    ]


def test_a_column_of_several_types_is_refused_in_parquet_before_it_is_written(tmp_path: Path) -> None:
    output = RowOutput(tmp_path / "out.parquet", FACTS)
    fill(output, [{"n": 1}, {"n": 2}, {"n": 3}])
    with pytest.raises(UserError, match=r"column 'n': .* of several .*give an `output` .jsonl"):
        fill(output, [{"n": 1}, {"n": 2}, {"n": 3}, {"n": "four"}], 3)
    assert RowOutput(tmp_path / "out.parquet", FACTS).place.num_rows == 3


def test_values_that_json_has_not_are_written_as_text(tmp_path: Path) -> None:
    output = RowOutput(tmp_path / "out.jsonl", FACTS)
    row = {"day": datetime.date(2026, 1, 2), "raw": b"\xff", "v": np.arange(2), "nan": float("nan"), "set": {1}}
    output.add([(row, {})], Place(num_rows=1))
    output.finish()
    expected = {"day": "2026-01-02", "raw": "/w==", "v": [0, 1], "nan": None, "set": "{1}"}
    assert json.loads((tmp_path / "out.jsonl").read_text()) == expected


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"n": number} for number in range(6)]
    output = RowOutput(tmp_path / "out.jsonl", FACTS)
    fill(output, rows[:3])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(row_output, "write_json_lines", full)
        with pytest.raises(UserError, match=r"No space left .*; 3 rows are kept in out.jsonl.partial"):
            fill(output, rows, 3)
    fill(output, rows, 3)
    with monkeypatch.context() as patched:
        patched.setattr(row_output, "write_atomically", full)
        with pytest.raises(UserError, match=r"are free there: .*6 rows are kept.*about 1 KiB more"):
            output.finish()
    assert not (tmp_path / "out.jsonl").exists()
    RowOutput(tmp_path / "out.jsonl", FACTS).finish()
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 6


def test_what_was_begun_of_other_rows_is_refused(tmp_path: Path) -> None:
    fill(RowOutput(tmp_path / "out.jsonl", FACTS), [{"n": 1}])
    with pytest.raises(UserError, match="was begun with other values of split; go on with those"):
        RowOutput(tmp_path / "out.jsonl", {**FACTS, "split": "test"})
    (tmp_path / "out.jsonl.partial" / "state.json").write_text("{")
    with pytest.raises(UserError, match="cannot be gone on with"):
        RowOutput(tmp_path / "out.jsonl", FACTS)


def test_a_column_that_a_prediction_has_in_this_format_is_refused(tmp_path: Path) -> None:
    row = {"text": "a", "probabilities.yes": 0.5}  # of an earlier file of predictions, its `prediction` renamed
    with pytest.raises(UserError, match=r"column 'probabilities.yes': is in the data.*in a file .csv: rename it"):
        fill(RowOutput(tmp_path / "out.csv", FACTS), [row])
    output = RowOutput(tmp_path / "out.jsonl", FACTS)
    fill(output, [row])
    output.finish()
    told = json.loads((tmp_path / "out.jsonl").read_text())
    assert (told["probabilities.yes"], told["probabilities"]["yes"]) == (0.5, 0.75)


def test_images_that_are_in_their_place_do_not_stop_the_file_from_being_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = RowOutput(tmp_path / "out.jsonl", FACTS)
    output.save_image("0-1.png", Image.new("L", (2, 2)))
    fill(output, [{"n": 1}])
    with monkeypatch.context() as patched:
        patched.setattr(row_output, "write_atomically", lambda *_: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(UserError, match="1 rows are kept"):
            output.finish()
    RowOutput(tmp_path / "out.jsonl", FACTS).finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out-images", "out.jsonl"]
    with pytest.raises(UserError, match="out-images is there already"):
        RowOutput(tmp_path / "out.csv", FACTS)


def test_a_full_disk_leaves_room_for_the_same_command_in_parquet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written of a part, or of the whole, is no burden to the disk on which there has to be room."""
    output = RowOutput(tmp_path / "out.parquet", FACTS)
    fill(output, [{"n": 1}])

    class Full:
        def __init__(self, where: Path, *_: Any) -> None:
            where.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(pq, "write_table", lambda _, where: Full(where))
        with pytest.raises(UserError, match="1 rows are kept"):
            fill(output, [{"n": 1}] * 6, 3)
        patched.setattr(pq, "ParquetWriter", Full)
        with pytest.raises(UserError, match="1 rows are kept"):
            output.finish()
    assert sorted(path.name for path in output.folder.iterdir()) == ["000000.parquet", "state.json"]


def test_an_image_that_the_disk_has_no_room_for_ends_it_as_rows_do(tmp_path: Path) -> None:
    class Large:
        def save(self, _: Path) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"No space left.*the same command goes on"):
        RowOutput(tmp_path / "out.jsonl", FACTS).save_image("0-1.png", Large())


def test_what_is_refused_at_once_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="of several"):
        fill(RowOutput(tmp_path / "out.parquet", FACTS), [{"n": 1}, {"n": "two"}])
    assert not list(tmp_path.iterdir())


def test_parquet_of_thousands_of_columns_looks_at_each_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unify, sizes = pa.unify_schemas, []
    monkeypatch.setattr(
        pa, "unify_schemas", lambda both, **how: sizes.append(max(map(len, both))) or unify(both, **how)
    )
    output = RowOutput(tmp_path / "out.parquet", FACTS)
    rows = [{f"c{number}": number for number in range(300)}] * 4
    fill(output, rows)
    assert max(sizes) == 1
    output.finish()
    told = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [{name: row[name] for name in rows[0]} for row in told] == rows


def test_whole_numbers_that_no_float_holds_are_refused_beside_floats(tmp_path: Path) -> None:
    output = RowOutput(tmp_path / "out.parquet", FACTS)
    fill(output, [{"n": 2**53 + 1}] * 3 + [{"n": 0.5}])
    with pytest.raises(UserError, match=r"column 'n': .* of several .*give an `output` .jsonl"):
        output.finish()
    assert not (tmp_path / "out.parquet").exists()


def test_images_of_another_file_are_told_before_the_work(tmp_path: Path) -> None:
    """Of one that was begun later, in another format, and is there: its images have the same place."""
    stopped, other = (RowOutput(tmp_path / name, FACTS) for name in ("out.jsonl", "out.csv"))
    for output in (stopped, other):
        output.save_image("0-1.png", Image.new("L", (2, 2)))
        fill(output, [{"n": 1}])
    other.finish()
    with pytest.raises(UserError, match="out-images is there already; move it"):
        RowOutput(tmp_path / "out.jsonl", FACTS)
    (tmp_path / "out-images").rename(tmp_path / "others")
    RowOutput(tmp_path / "out.jsonl", FACTS).finish()
    assert (tmp_path / "out-images" / "0-1.png").exists()
