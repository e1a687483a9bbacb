"""CoNLL files: a word and its tag in each line, an empty line after each text."""

from collections.abc import Iterator
from itertools import groupby

from hf_accum.data.formats.opening import encoding_by, head_of, is_escaped, text_of_file, wrong_encoding
from hf_accum.data.formats.rows import BadRow, Row
from hf_accum.errors import UserError, shown
from hf_accum.tasks.token_classification.tags import split_tag

SUFFIXES = (".conll", ".bio", ".iob", ".iob2", ".bioes", ".bilou", ".txt")
DOCUMENT = "document"
"""The column with the number of a text's document, from 1 on: `-DOCSTART-` begins a new one."""
_DOCUMENT_STARTS = "-DOCSTART-"


def read_column_file(file: str, start: int, words: str, tags: str) -> Iterator[tuple[int, Row | BadRow]]:
    """The texts of a file, from a number on: lists of words (the first column) and of tags (the last one).

    Columns have tabs between them, or spaces where the line has no tab. A line that begins with # and has not the
    columns of the others is a comment.

    Raises:
        UserError: if there is no line with a word and a tag.
    """
    num_columns = _num_columns(file)
    for number, (document, lines) in enumerate(_texts(file, num_columns)):
        if number >= start:
            yield number, _row(file, document, lines, num_columns, words, tags)


def check(file: str) -> None:
    """See that a file has a line with a word and its tag.

    Raises:
        UserError: naming the first line that has none.
    """
    _num_columns(file)


def is_column_file(file: str) -> bool:
    """Whether a file's first line is a word and its tag."""
    try:
        return _num_columns(file) > 1
    except UserError:
        return False


def _columns(line: str) -> list[str]:
    line = line.rstrip("\r\n")
    return line.split("\t") if "\t" in line else [column for column in line.split(" ") if column]


def _lines(file: str) -> Iterator[tuple[int, str]]:
    with text_of_file(file, encoding_by(head_of(file))) as lines:
        yield from enumerate(lines, 1)


def _num_columns(file: str) -> int:
    """Of the first line that is neither empty, the start of a document, nor perhaps a comment."""
    for number, line in _lines(file):
        columns = _columns(line)
        if not line.strip() or columns[0] == _DOCUMENT_STARTS or line.startswith("#"):
            continue
        if len(columns) > 1 and split_tag(columns[-1]) is not None:
            return len(columns)
        raise UserError(
            f"line {number}: {shown(line.strip())} is no word with its tag: a file of columns has to have a word in "
            "the first one, and O, B-TYPE or I-TYPE (or E-, S-, L-, U-) in the last one"
        )
    raise UserError("no line has a word and its tag")


def _texts(file: str, num_columns: int) -> Iterator[tuple[int, list[tuple[int, str]]]]:
    """The lines of each text, with their numbers, and the number of its document."""
    document = 1
    has_text = False

    def kind(line: tuple[int, str]) -> str:
        columns = _columns(line[1])
        if columns and columns[0] == _DOCUMENT_STARTS:
            return _DOCUMENT_STARTS
        return "text" if line[1].strip() else ""

    lines = (line for line in _lines(file) if not _is_comment(line[1], num_columns))
    for of_kind, group in groupby(lines, kind):
        if of_kind == _DOCUMENT_STARTS and has_text:
            document += 1
        elif of_kind == "text":
            has_text = True
            yield document, list(group)


def _is_comment(line: str, num_columns: int) -> bool:
    columns = _columns(line)
    return line.startswith("#") and (len(columns) != num_columns or split_tag(columns[-1]) is None)


def _row(
    file: str, document: int, lines: list[tuple[int, str]], num_columns: int, words: str, tags: str
) -> Row | BadRow:
    row: dict[str, list[str]] = {words: [], tags: []}
    for number, line in lines:
        columns = _columns(line)
        if len(columns) != num_columns:
            return BadRow("", f"line {number}: {len(columns)} columns, and the file's first line has {num_columns}")
        if is_escaped(line):
            return BadRow("", f"line {number}: not UTF-8", wrong_encoding(file, line))
        if split_tag(columns[-1].strip()) is None:
            return BadRow("", f"line {number}: {shown(columns[-1])} is no tag")
        if not columns[0].strip():
            return BadRow("", f"line {number}: no word")
        row[words].append(columns[0].strip())
        row[tags].append(columns[-1].strip())
    return row | {DOCUMENT: document}
