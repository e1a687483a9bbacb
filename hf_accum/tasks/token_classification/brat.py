"""BRAT folders: a text in a .txt file, its annotations in the .ann file of the same name."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from hf_accum.data.formats.opening import wrong_encoding
from hf_accum.data.formats.rows import BadRow, Row
from hf_accum.errors import first_line, shown
from hf_accum.tasks.token_classification.spans import Span

_ENTITY = re.compile(r"T\S*\t(?P<label>\S+) (?P<places>\d+ \d+(?:;\d+ \d+)*)(?:\t(?P<text>.*))?")
DOCUMENT = "document"
"""The column with the name of a text's file, without its ending."""


def annotations_of(text_file: str) -> str:
    """The file of a text's annotations."""
    return str(Path(text_file).with_suffix(".ann"))


def read_document(text_file: str, start: int, text: str, entities: str) -> Iterator[tuple[int, Row | BadRow]]:
    """The one row of a document: its text and the spans of its entities."""
    if start == 0:
        yield 0, _row(Path(text_file), text, entities)


def _row(text_file: Path, text: str, entities: str) -> Row | BadRow:
    annotations = Path(annotations_of(str(text_file)))
    try:
        content = _read(text_file)
        lines = _read(annotations).split("\n") if annotations.is_file() else None
    except BadRow as bad:
        return bad
    if lines is None:
        return BadRow("", f"no file {annotations.name} beside it: it has to be there, and is empty without entities")
    spans = []
    for number, line in enumerate(lines, 1):
        if not line.startswith("T"):
            continue
        match = _ENTITY.fullmatch(line.rstrip())
        where = f"{annotations.name}, line {number}"
        if match is None:
            return BadRow("", f"{where}: {shown(line)} is no entity: it has to be T1, its type and places, its text")
        spans.append(_span(match, content, where))
    return {text: content, entities: spans, DOCUMENT: text_file.stem}


def _read(file: Path) -> str:
    """As it is: places count each character of a line end, and the mark of the byte order.

    Raises:
        BadRow: if it is not UTF-8.
    """
    content = file.read_bytes()
    try:
        return content.decode("utf-8")
    except ValueError as error:
        way_out = wrong_encoding(str(file), content.decode("utf-8", "surrogateescape"))
        raise BadRow("", f"{file.name}: not UTF-8 ({first_line(error)})", way_out) from error


def _span(match: re.Match[str], content: str, where: str) -> Span:
    """A discontinuous one from its first to its last character, if its pieces are what it says."""
    pieces = [tuple(map(int, places.split())) for places in match["places"].split(";")]
    start, end = min(first for first, _ in pieces), max(last for _, last in pieces)
    said, is_discontinuous = match["text"], len(pieces) > 1
    if said is not None and is_discontinuous:
        there = " ".join(content[first:last] for first, last in pieces)
        said = content[start:end] if there.split() == said.split() else said
    return Span(start, end, match["label"], said, where, is_discontinuous)


def unused_lines(text_files: Sequence[str]) -> Counter[str]:
    """How many lines of the annotations tell of something else than entities, by what it is."""
    kinds = {"R": "relations", "E": "events", "A": "attributes", "M": "attributes", "N": "normalisations"}
    kinds |= {"*": "equivalences", "#": "notes"}
    found: Counter[str] = Counter()
    for file in map(annotations_of, text_files):
        if Path(file).is_file():
            letters = (
                line[:1] for line in Path(file).read_bytes().decode("utf-8", "replace").split("\n") if line.strip()
            )
            found.update(kinds.get(letter, "others") for letter in letters if letter != "T")
    return found
