"""Files of rows, and what is read from them."""

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hf_accum.data.source import BadRow, Row, Source, good_rows
from hf_accum.tasks.labels import LabelColumn
from hf_accum.tasks.tokenization import text_of

LABELS = LabelColumn("label", "single_label_classification", ("no", "yes"), codes=("0", "1"))


def prepare(row: Row) -> tuple[str, Any]:
    return text_of(row, "text"), LABELS.encode(row)


def read_all(source: Source, shard: int = 0, start: int = 0) -> list[tuple[int, Any]]:
    return list(source.read(shard, start))


def prepared(source: Source) -> list[tuple[int, tuple[str, Any]]]:
    return list(good_rows(source, 0, 0, prepare, "error", Counter()))


def as_csv(rows: Sequence[Sequence[str]], separator: str = ",") -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator).writerows(rows)
    return text.getvalue().encode()


def as_jsonl(rows: Sequence[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def write(folder: Path, name: str, content: bytes) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


GOOD = {"text": "fine", "label": "yes"}


def check_bad_row(source: Source, number: int, field: str, said: str, good: list[int]) -> None:
    """Stops at the row, naming file, row from 1 and field; or counts it once, and gives all others."""
    where = f"{source.names[0]}, row {number + 1}: " + (f"field {field!r}: " if field else "")
    with pytest.raises(ValueError) as stopped:  # noqa: PT011
        list(good_rows(source, 0, 0, prepare, "error", Counter()))
    assert not isinstance(stopped.value, BadRow)
    assert str(stopped.value).startswith(where)
    assert said in str(stopped.value)
    assert "`on_bad_row skip`" in str(stopped.value)

    bad_rows: Counter[str] = Counter()
    assert [n for n, _ in good_rows(source, 0, 0, prepare, "skip", bad_rows)] == good
    assert bad_rows.total() == 1
    (reason,) = bad_rows
    assert said in reason
    assert repr(field) in reason or not field

    # Seeking behind the row leaves it alone, to it does not.
    assert [n for n, _ in good_rows(source, 0, number + 1, prepare, "error", Counter())] == [
        n for n in good if n > number
    ]
    with pytest.raises(ValueError, match=f"row {number + 1}:"):
        list(good_rows(source, 0, number, prepare, "error", Counter()))
