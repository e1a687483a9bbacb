"""Rows of CSV: none is swallowed by another, and a broken one is bad alone."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from row_files import as_csv, check_bad_row, prepare, read_all, write

from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.source import good_rows, open_source
from hf_accum.data.split import open_split
from hf_accum.data.survey import Observed
from hf_accum.distributed.ranks import OneRank


def as_typed(rows: Sequence[Sequence[str]], separator: str) -> bytes:
    """As people write it, who know of no quotation marks."""
    return "".join(separator.join(row) + "\n" for row in rows).encode()


def table(num_rows: int, marks: dict[int, str]) -> list[list[str]]:
    """A header and rows, some of which have other texts: by their numbers from 1."""
    return [["text", "label"], *([marks.get(i, f"note {i}"), ("yes", "no")[i % 2]] for i in range(1, num_rows + 1))]


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
@pytest.mark.parametrize(
    ("marks", "said"),
    [
        (
            {11: '"pain since Monday', 41: 'he said so"'},
            "line 12: .* begins a field of 31 lines, of which 30",
        ),
        (
            {11: '"pain since Monday', 12: 'he said so"'},
            "line 12: .* begins a field of 2 lines, of which 1",
        ),
        (
            {11: '"pain since Monday', 41: 'he said "no'},
            "line 12: .* that is followed by more text, 31 lines on",
        ),
        ({11: '"pain since Monday', 41: '"again'}, "line 12: .* that is followed by more text, 31 lines on"),
        ({11: '"pain since Monday'}, "line 12: a quotation mark begins a field that has no end, 50 lines on"),
        (
            {1: '"pain since Monday', 41: 'he said so"'},
            "line 2: .* begins a field of 41 lines, of which 40",
        ),
    ],
)
@pytest.mark.parametrize(("name", "separator"), [("rows.tsv", "\t"), ("rows.csv", ","), ("rows.csv", ";")])
def test_a_mark_that_swallows_rows_ends_the_reading(
    tmp_path: Path, marks: dict[int, str], said: str, on_bad_row: Any, name: str, separator: str
) -> None:
    """60 rows of which one would be up to 50: never fewer rows without a word, whatever is skipped."""
    file = write(tmp_path, name, as_typed(table(60, marks), separator))
    source = open_source(file, "train")
    with pytest.raises(ValueError, match=rf"^{name}: {said}.*give `csv_quoting none`"):
        list(good_rows(source, 0, 0, prepare, on_bad_row, Counter()))
    as_characters = open_source(file, "train", quoting="none")
    texts = [text for _, (text, _) in good_rows(as_characters, 0, 0, prepare, "error", Counter())]
    assert texts == [row[0] for row in table(60, marks)[1:]]
    assert [row for _, row in as_characters.read(0, 40)] == [row for _, row in as_characters.read(0, 0)][40:]


def test_a_text_of_many_lines_is_none(tmp_path: Path) -> None:
    """Also where some of its lines have as many commas as rows have."""
    text = "Aspirin, 100 mg\nno known allergies\nIbuprofen, 400 mg\n" * 5
    rows = [["text", "label"], *([text, ("yes", "no")[i % 2]] for i in range(20))]
    source = open_source(write(tmp_path, "rows.csv", as_csv(rows)), "train")
    assert [row["text"] for _, row in read_all(source)] == [text.replace("\n", "\n")] * 20
    assert source.num_quoted_lines(0) == 20 * 15


def test_a_list_of_lines_like_rows_needs_a_word_of_the_user(tmp_path: Path) -> None:
    text = "\n".join(f"drug {i}, {i} mg" for i in range(30))
    file = write(tmp_path, "rows.csv", as_csv([["text", "label"], [text, "yes"]]))
    with pytest.raises(ValueError, match=r"line 2: .* of 30 lines, of which 29 look like.*`csv_quoting standard`"):
        read_all(open_source(file, "train"))
    assert read_all(open_source(file, "train", quoting="standard")) == [(0, {"text": text, "label": "yes"})]


@given(
    notes=st.lists(st.lists(st.text("ab ,;'\t", max_size=8), min_size=1, max_size=4), min_size=1, max_size=8),
    after=st.integers(0, 3),
)
@example(notes=[["a"], ["b", "c"]], after=1)
def test_lines_are_rows_or_within_fields(
    tmp_path_factory: pytest.TempPathFactory, notes: list[list[str]], after: int
) -> None:
    """Lines and rows are counted against each other: by the lines that were written."""
    rows = [["text", "label"], *(["\n".join(lines), "yes"] for lines in notes)]
    content = as_csv(rows).replace(b"\r\n", b"\n") + b"\n" * after
    source = open_source(write(tmp_path_factory.mktemp("rows"), "rows.csv", content), "train", quoting="standard")
    assert len(read_all(source)) == len(notes)
    assert source.num_quoted_lines(0) == content.count(b"\n") - 1 - len(notes) - after


def test_the_number_of_lines_within_fields_is_said(tmp_path: Path) -> None:
    rows = [["text", "label"], *([f"note {i}" + "\nmore" * (i % 3), ("yes", "no")[i % 2]] for i in range(60))]
    file = write(tmp_path, "rows.csv", as_csv(rows))
    data = open_split(file, ["text", "label"], RecipeConfig(), group_column="text")
    data = data.surveyed(lambda row: Observed((row["label"],), row["text"]), OneRank(), "error")
    (note,) = data.notes_of_files
    assert note.startswith("60 lines of CSV lie within quoted fields")


BROKEN: dict[str, tuple[bytes, str, str]] = {
    "the header once more": (b"text,label", "", "the header once more"),
    "text behind a quotation mark": (b'"pain" since Monday,yes', "", "a quotation mark within a field ("),
    "too many fields": (b"fine,yes,1", "", "1 more fields than the header"),
    "not UTF-8": (b"caf\xe9,yes", "text", "not UTF-8"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_row_is_bad_alone(tmp_path: Path, kind: str) -> None:
    line, field, said = BROKEN[kind]
    content = b"".join(b"note %d,yes\n" % i for i in range(20))
    file = write(tmp_path, "rows.csv", b"text,label\n" + content + line + b"\n" + content)
    check_bad_row(open_source(file, "train"), 20, field, said, [*range(20), *range(21, 41)])


def test_what_is_wrong_with_the_whole_file_is_said_so(tmp_path: Path) -> None:
    """Of cp1252 how to convert it; of marks within fields how they are meant."""
    content = "text,label\n" + "".join(f"Fièvre {i},yes\n" for i in range(20))
    for bad, way_out in (
        (content.encode("cp1252"), "`iconv -f cp1252 -t utf-8 rows.csv > utf8-rows.csv`"),
        (b'text,label\n"a" b,yes\n', "give `csv_quoting none`"),
    ):
        source = open_source(write(tmp_path, "rows.csv", bad), "train")
        with pytest.raises(ValueError, match=r"rows.csv, row 1: ") as stopped:
            list(good_rows(source, 0, 0, prepare, "error", Counter()))
        assert way_out in str(stopped.value)
        assert "mend the row" not in str(stopped.value)


def test_a_value_in_a_column_without_a_name_is_a_bad_row(tmp_path: Path) -> None:
    content = b"text,label,\n" + b"a,yes,\n" * 20_000 + b"b,no,x\n"
    source = open_source(write(tmp_path, "rows.csv", content), "train")
    bad_rows: Counter[str] = Counter()
    assert len(list(good_rows(source, 0, 0, prepare, "skip", bad_rows))) == 20_000
    assert bad_rows == {"a value in column 3, which has no name": 1}
