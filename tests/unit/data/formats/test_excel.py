"""Excel workbooks: typed values of the first sheet, from any row on."""

from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from openpyxl import Workbook, load_workbook
from row_files import prepare, read_all

from hf_accum.data.source import BadRow, good_rows, open_source

SEEN = datetime(2024, 2, 29, 8, 30)
ROWS = [{"text": f"note {i}", "label": ("yes", "no")[i % 2], "age": 40 + i, "seen": SEEN} for i in range(20)]


def save(folder: Path, rows: Any, *sheets: str) -> str:
    book = Workbook()
    assert book.active is not None
    for row in rows:
        book.active.append(row)
    for name in sheets:
        book.create_sheet(name).append(["code", "name"])
    book.save(folder / "rows.xlsx")
    return str(folder / "rows.xlsx")


def table() -> list[list[Any]]:
    return [list(ROWS[0]), *(list(row.values()) for row in ROWS)]


def test_rows_come_back_typed_from_any_row_on(tmp_path: Path) -> None:
    source = open_source(save(tmp_path, table()), "train", columns=("text", "label"))
    assert read_all(source) == list(enumerate(ROWS))
    for start in (1, 7, 19, 20, 25):
        assert read_all(source, start=start) == list(enumerate(ROWS))[start:]
    assert source.notes == ()


def test_other_sheets_are_named(tmp_path: Path) -> None:
    source = open_source(save(tmp_path, table(), "Codes", "Notes"), "train")
    assert len(read_all(source)) == 20
    (note,) = source.notes
    assert note.startswith("rows.xlsx: only its first sheet is read, 'Sheet'; left out: Codes, Notes")


def test_empty_rows_are_none_and_an_index_is_left_out(tmp_path: Path) -> None:
    rows = [[None, " text ", "label", None], [0, "a", "yes"], [], [1, "b", None]]
    source = open_source(save(tmp_path, rows), "train")
    assert read_all(source) == [(0, {"text": "a", "label": "yes"}), (2, {"text": "b", "label": None})]
    assert read_all(source, start=1) == [(2, {"text": "b", "label": None})]
    assert source.notes == (
        "rows.xlsx: the first column has no name (an index, as pandas writes it) and is left out",
    )


def test_broken_rows_are_bad_alone(tmp_path: Path) -> None:
    rows = [["text", "label"], ["a", "yes"], ["b", "#N/A"], [7, "yes"], ["c", "yes", "more"], ["d", "no"]]
    file = save(tmp_path, rows)
    source = open_source(file, "train")
    bad_rows: Counter[str] = Counter()
    assert [number for number, _ in good_rows(source, 0, 0, prepare, "skip", bad_rows)] == [0, 4]
    assert sorted(bad_rows) == [
        "a value in column 3, which has no name",
        "field 'label': #N/A, which is an error of the sheet's formula",
        "field 'text': 7 is of type int, not a text",
    ]
    with pytest.raises(ValueError, match=r"rows.xlsx, row 2: field 'label': #N/A"):
        list(good_rows(source, 0, 0, prepare, "error", Counter()))


def test_values_of_formulas_as_they_are_stored(tmp_path: Path) -> None:
    """One that no program has computed has none."""
    file = save(tmp_path, [["text", "label"], ["a", '="y"&"es"']])
    assert read_all(open_source(file, "train")) == [(0, {"text": "a", "label": None})]
    computed = tmp_path / "computed.xlsx"
    import zipfile

    with zipfile.ZipFile(file) as old, zipfile.ZipFile(computed, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "xl/worksheets/sheet1.xml":
                assert b"<v></v>" in content or b"<v />" in content or b"<v/>" in content
                for empty in (b"<v></v>", b"<v />", b"<v/>"):
                    content = content.replace(empty, b"<v>yes</v>")
                content = content.replace(b'<c r="B2"', b'<c r="B2" t="str"')
            new.writestr(name, content)
    assert load_workbook(computed)["Sheet"]["B2"].value == '="y"&"es"'
    assert read_all(open_source(str(computed), "train")) == [(0, {"text": "a", "label": "yes"})]


def test_what_is_no_workbook_or_lacks_a_column_or_openpyxl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = save(tmp_path, table())
    with pytest.raises(ValueError, match=r"has no column 'note': it has text, label, age, seen"):
        open_source(file, "train", columns=("note",))
    with pytest.raises(ValueError, match="two columns have the same name: text, text"):
        open_source(save(tmp_path, [["text", "text"]]), "train")
    (tmp_path / "broken.xlsx").write_bytes(Path(file).read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"broken.xlsx cannot be read \(BadZipFile"):
        open_source(str(tmp_path / "broken.xlsx"), "train")
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    with pytest.raises(ValueError, match="needs openpyxl: `pip install openpyxl`") as refused:
        open_source(file, "train")
    assert not isinstance(refused.value, BadRow)
