"""Files of rows, and what is read from them."""

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_accum.data.source import Row, Source, good_rows
from hf_accum.tasks.labels import LabelColumn
from hf_accum.tasks.tokenization import text_of

LABELS = LabelColumn("label", "single_label_classification", ("no", "yes"))


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
