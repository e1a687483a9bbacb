"""CSV as programs write it: its form is found and said, and its rows are those that were meant, from any one on."""

from pathlib import Path

import pandas as pd
import pytest
from row_files import read_all, write

from hf_accum.data.source import open_source

TEXTS = [f"a note, {i}; of {i} days | with\ta tab" if i % 2 else f"plain {i}" for i in range(20)]
LABELS = [("yes", "no")[i % 3 == 0] for i in range(20)]
FRAME = pd.DataFrame({"text": TEXTS, "label": LABELS})
ROWS = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]


def check(file: str, *notes: str, rows: object = ROWS) -> None:
    """The rows, from any one on, and what is said of the file."""
    source = open_source(file, "train", columns=("text", "label"))
    everything = read_all(source)
    assert [row for _, row in everything] == rows
    for start in (1, 7, 19, 20, 21):
        assert read_all(source, start=start) == everything[start:]
    name = Path(file).name
    assert source.notes == tuple(f"{name}: {note}" for note in notes)


INDEX = "the first column has no name (an index, as pandas writes it) and is left out"


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
@pytest.mark.parametrize(("separator", "name"), [(",", "commas"), (";", "semicolons"), ("\t", "tabs")])
def test_the_separator_is_found(tmp_path: Path, suffix: str, separator: str, name: str) -> None:
    file = tmp_path / f"rows.{suffix}"
    FRAME.to_csv(file, sep=separator, index=False)
    is_usual = separator == {"csv": ",", "tsv": "\t"}[suffix]
    check(str(file), *([] if is_usual else [f"fields are separated by {name}"]))
    file.write_text(file.read_text().replace("\n", "\r\n"), newline="")
    check(str(file), *([] if is_usual else [f"fields are separated by {name}"]))


def test_a_file_of_one_column_has_no_separator(tmp_path: Path) -> None:
    content = b"text\nplain\n" + b"a;b;c | d\n" * 9
    source = open_source(write(tmp_path, "rows.csv", content), "train")
    assert [row for _, row in read_all(source)] == [{"text": "plain"}] + [{"text": "a;b;c | d"}] * 9
    assert source.notes == ()


def test_the_index_of_pandas_is_left_out(tmp_path: Path) -> None:
    FRAME.to_csv(tmp_path / "rows.csv")
    check(str(tmp_path / "rows.csv"), INDEX)
    FRAME.to_csv(tmp_path / "rows.csv", sep=";")
    check(str(tmp_path / "rows.csv"), "fields are separated by semicolons", INDEX)


def test_quotation_marks_behind_backslashes(tmp_path: Path) -> None:
    frame = FRAME.assign(text=[f'said "no", {text} \\ (C:\\new)' for text in TEXTS])
    frame.to_csv(tmp_path / "rows.csv", index=False, doublequote=False, escapechar="\\")
    rows = [row | {"text": text} for row, text in zip(ROWS, frame["text"], strict=True)]
    note = "quotation marks within fields stand behind a backslash (`csv_quoting backslash`)"
    check(str(tmp_path / "rows.csv"), note, rows=rows)


def test_a_backslash_alone_is_one(tmp_path: Path) -> None:
    frame = FRAME.assign(text=[rf"C:\new\{i}, \"" for i in range(20)])
    frame.to_csv(tmp_path / "rows.csv", index=False)
    check(str(tmp_path / "rows.csv"), rows=[row | {"text": t} for row, t in zip(ROWS, frame["text"], strict=True)])


def lines(*rows: str) -> bytes:
    return "".join(f"{row}\n" for row in rows).encode()


SPACES = "spaces behind separators are left out"
OF_NAMES = "names of columns are taken without the spaces around them"
FORMS: dict[str, tuple[bytes, list[dict[str, str]], tuple[str, ...]]] = {
    "a space after the separator": (
        lines("text, label", "a, yes", "b, no"),
        [{"text": "a", "label": "yes"}, {"text": "b", "label": "no"}],
        (SPACES,),
    ),
    "a space before quotation marks": (
        lines("text,label", 'a, "yes, so"', 'b, "no"'),
        [{"text": "a", "label": "yes, so"}, {"text": "b", "label": "no"}],
        (SPACES,),
    ),
    "a space in texts is no form": (
        lines("text,label", " a,yes", "b, no"),
        [{"text": " a", "label": "yes"}, {"text": "b", "label": " no"}],
        (),
    ),
    "spaces in names": (
        lines("my text ,the label", "a,yes"),
        [{"my text": "a", "the label": "yes"}],
        (OF_NAMES,),
    ),
    "separators at the end of lines": (
        lines("text;label;;", "a;yes;;", "b;no;;"),
        [{"text": "a", "label": "yes"}, {"text": "b", "label": "no"}],
        ("fields are separated by semicolons", "lines end with separators, behind which is nothing"),
    ),
    "a separator at the end of rows": (
        lines("text,label", "a,yes,", "b,no,"),
        [{"text": "a", "label": "yes"}, {"text": "b", "label": "no"}],
        ("its rows end with a separator, behind which is nothing",),
    ),
    "an index in quotation marks": (
        lines('"","text","label"', '"1","a","yes"'),
        [{"text": "a", "label": "yes"}],
        (INDEX,),
    ),
    "a decimal comma": (
        lines("text;label", "a;1,5", "b;2,5"),
        [{"text": "a", "label": "1,5"}, {"text": "b", "label": "2,5"}],
        ("fields are separated by semicolons",),
    ),
    "nothing but a header": (lines("text|label"), [], ("fields are separated by vertical bars",)),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(tmp_path: Path, form: str) -> None:
    content, rows, notes = FORMS[form]
    source = open_source(write(tmp_path, "rows.csv", content), "train")
    assert [row for _, row in read_all(source)] == rows
    assert source.notes == tuple(f"rows.csv: {note}" for note in notes)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lines("text,label,text", "a,yes,b"), r"rows.csv: two columns have the same name: text, label, text"),
        (
            b"text,caf\xe9\na,yes\n",
            r"its header is not UTF-8: .*`iconv -f cp1252 -t utf-8 rows.csv > utf8-rows",
        ),
        (lines('"te"xt,label', "a,yes"), "a quotation mark within a field of its header: give `csv_quoting none`"),
        ("text,label\na,yes\n".encode("utf-16-le"), r"NUL characters everywhere.*`iconv -f utf-16le"),
    ],
)
def test_a_header_that_cannot_be_used(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        open_source(write(tmp_path, "rows.csv", content), "train")
    assert "mend the row" not in str(refused.value)


def test_a_column_that_is_not_there_is_said_of_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "rows.csv", lines("text;label", "a;yes"))
    with pytest.raises(ValueError, match=r"rows.csv' has no column 'note': it has text, label$"):
        open_source(file, "train", columns=("note", "label"))
