"""A column for each label, read as a list."""

import json
from pathlib import Path
from typing import Any

import pytest

from hf_accum.data.formats.rows import BadRow
from hf_accum.data.source import open_source
from hf_accum.tasks.label_columns import join_labels, joined_name

COLUMNS = ("has fever", "cough")


def joined(tmp_path: Path, rows: list[dict[str, Any]], names: tuple[str, str] = COLUMNS) -> list[Any]:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = join_labels(open_source(str(tmp_path / "rows.jsonl"), "train"), COLUMNS, names)
    return [row if isinstance(row, BadRow) else row[joined_name(COLUMNS)] for _, row in source.read(0, 0)]


def test_the_columns_that_say_yes_are_the_labels(tmp_path: Path) -> None:
    values = [(1, 0), ("yes", "true"), (False, 1.0), ("0", "no")]
    rows = [{"has fever": fever, "cough": cough} for fever, cough in values]
    assert joined(tmp_path, rows) == [["has fever"], ["has fever", "cough"], ["cough"], []]
    assert joined(tmp_path, rows[:1], ("Fever", "Cough")) == [["Fever"]]


NO_BINARY = "has to be 0 or 1, true or false, yes or no"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"has fever": 1}, "no such column"),
        ({"has fever": 0, "cough": None}, "no label"),
        *(({"has fever": 0, "cough": value}, NO_BINARY) for value in (2, "", "mild", [1])),
    ],
)
def test_a_bad_value_names_its_own_column(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    (bad,) = joined(tmp_path, [row])
    assert isinstance(bad, BadRow)
    assert bad.field == "cough"
    assert said in bad.reason
