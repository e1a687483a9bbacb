"""CoNLL files as people have them: 20 texts in each shape, and broken ones."""

import lzma
from pathlib import Path
from typing import Any

import pytest

from hf_accum.data.formats.rows import BadRow
from hf_accum.tasks.token_classification.column_file import check, is_column_file, read_column_file

TEXT = [("no", "O"), ("heart", "B-sign"), ("failure", "I-sign")]


def rows_of(file: Path, content: str, start: int = 0) -> list[Any]:
    file.write_text(content, newline="")
    return list(read_column_file(str(file), start, "words", "tags"))


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("middle", ["\t", " ", "   ", "\tNN\t_\t", " NN _ "])
@pytest.mark.parametrize("head", ["", "\ufeff", "-DOCSTART- -X- O O\n\n", "# text = about patient B\n", "\n\n"])
def test_twenty_texts(tmp_path: Path, line_end: str, middle: str, head: str) -> None:
    text = "".join(f"{word}{middle}{tag}\n" for word, tag in TEXT)
    content = (head + "# id 7 domain=en\n".join([text + "\n"] * 20)).replace("\n", line_end)
    rows = rows_of(tmp_path / "a.conll", content)
    row = {"words": [word for word, _ in TEXT], "tags": [tag for _, tag in TEXT], "document": 1}
    assert rows == [(number, row) for number in range(20)]
    assert rows_of(tmp_path / "a.conll", content, start=17) == rows[17:]
    check(str(tmp_path / "a.conll"))


def test_documents_are_counted_and_signs_are_words(tmp_path: Path) -> None:
    content = "-DOCSTART- O\n\n# O\n5 O\n\na b\tO\n\n-DOCSTART- O\n\nc B-x\n"
    content = content.replace("-DOCSTART- O", "-DOCSTART-\tO").replace("# O", "#\tO").replace("5 O", "5\tO")
    rows = [row for _, row in rows_of(tmp_path / "a.conll", content.replace("c B-x", "c\tB-x"))]
    assert [(row["words"], row["document"]) for row in rows] == [(["#", "5"], 1), (["a b"], 1), (["c"], 2)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("fever", "line 6: 1 columns, and the file's first line has 2"),
        ("high fever O", "line 6: 3 columns"),
        ("fever sign", "line 6: 'sign' is no tag"),
        (" \tO", "line 6: no word"),
        ("f\udce9ver O", "line 6: not UTF-8"),
    ],
)
def test_a_broken_line_is_a_bad_row_by_its_number(tmp_path: Path, line: str, said: str) -> None:
    text = "".join(f"{word} {tag}\n" for word, tag in TEXT)
    file = tmp_path / "a.conll"
    file.write_bytes(f"{text}\nno O\n{line}\n\n{text}".encode(errors="surrogateescape"))
    (first, (_, bad), last) = read_column_file(str(file), 0, "words", "tags")
    assert isinstance(bad, BadRow)
    assert said in str(bad)
    assert first[1]["words"] == last[1]["words"]  # type: ignore[index] (they are rows)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_as_windows_writes_it(tmp_path: Path, encoding: str) -> None:
    text = "".join(f"{word} {tag}\r\n" for word, tag in [("fi\u00e8vre", "B-sign"), *TEXT]) + "\r\n"
    file = tmp_path / "a.conll.xz"
    file.write_bytes(lzma.compress((text * 2).encode(encoding)))
    rows = [row for _, row in read_column_file(str(file), 0, "words", "tags")]
    assert [row["words"] for row in rows] == [["fi\u00e8vre", *(word for word, _ in TEXT)]] * 2  # type: ignore[index]


def test_of_another_encoding_the_way_out_is_said(tmp_path: Path) -> None:
    file = tmp_path / "a.conll"
    file.write_bytes("fi\u00e8vre O\n".encode("cp1252"))
    ((_, bad),) = read_column_file(str(file), 0, "words", "tags")
    assert isinstance(bad, BadRow)
    assert "`iconv -f cp1252 -t utf-8 a.conll > utf8-a.conll`" in bad.way_out


def test_another_file_is_refused_by_its_line(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("\n# a\nPatient has fever.\n")
    assert not is_column_file(str(file))
    with pytest.raises(ValueError, match=r"line 3: 'Patient has fever\.' is no word with its tag"):
        check(str(file))
    file.write_text("# a comment\n\n")
    with pytest.raises(ValueError, match="no line has a word and its tag"):
        check(str(file))
