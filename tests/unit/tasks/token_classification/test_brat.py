"""BRAT documents: entities with and without gaps, other lines, and broken ones."""

from pathlib import Path
from typing import Any

import pytest

from hf_accum.data.formats.rows import BadRow
from hf_accum.tasks.token_classification.brat import read_document, unused_lines
from hf_accum.tasks.token_classification.spans import Span

TEXT = "Severe chest\npain and back pain."


def row_of(folder: Path, annotations: str | None) -> Any:
    (folder / "p1.txt").write_text(TEXT)
    if annotations is not None:
        (folder / "p1.ann").write_text(annotations)
    ((number, row),) = read_document(str(folder / "p1.txt"), 0, "text", "entities")
    assert number == 0
    assert list(read_document(str(folder / "p1.txt"), 1, "text", "entities")) == []
    return row


def test_entities_are_read_and_other_lines_are_counted(tmp_path: Path) -> None:
    lines = [
        "T1\tSign 7 17\tchest pain",
        "T2\tSign 0 6;22 31\tSevere back pain",
        "R1\tSame Arg1:T1 Arg2:T2",
        "A1\tNegated T1",
        "#1\tAnnotatorNotes T1\tsure",
        "",
    ]
    row = row_of(tmp_path, "\n".join(lines))
    assert (row["text"], row["document"]) == (TEXT, "p1")
    assert row["entities"] == [
        Span(7, 17, "Sign", "chest pain", "p1.ann, line 1"),
        Span(0, 31, "Sign", TEXT[:31], "p1.ann, line 2", is_discontinuous=True),
    ]
    assert unused_lines([str(tmp_path / "p1.txt")]) == {"relations": 1, "attributes": 1, "notes": 1}


def test_an_empty_file_is_a_text_without_entities(tmp_path: Path) -> None:
    assert row_of(tmp_path, "")["entities"] == []


@pytest.mark.parametrize(
    ("annotations", "said"),
    [
        (None, "no file p1.ann beside it"),
        ("T1\tSign 7 17\tchest pain\nT2 Sign 0 6 Severe", "p1.ann, line 2: 'T2 Sign 0 6 Severe' is no entity"),
        ("T1\tSign 7\tchest", "p1.ann, line 1: 'T1\\tSign 7\\tchest' is no entity"),
        ("T1\tSign a b\tchest", "is no entity"),
    ],
)
def test_a_broken_document_is_a_bad_row(tmp_path: Path, annotations: str | None, said: str) -> None:
    bad = row_of(tmp_path, annotations)
    assert isinstance(bad, BadRow)
    assert said in str(bad)


def test_bytes_that_are_no_text_are_a_bad_row(tmp_path: Path) -> None:
    row_of(tmp_path, "")
    (tmp_path / "p1.txt").write_bytes(b"f\xe9ver")
    ((_, bad),) = read_document(str(tmp_path / "p1.txt"), 0, "text", "entities")
    assert isinstance(bad, BadRow)
    assert "p1.txt: not UTF-8" in str(bad)
    assert "iconv -f cp1252" in bad.way_out


def test_pieces_that_are_others_than_said_do_not_match(tmp_path: Path) -> None:
    row = row_of(tmp_path, "T1\tSign 0 6;18 21\tSevere pain")
    assert row["entities"][0].text == "Severe pain"  # which is not what stands from 0 to 21
