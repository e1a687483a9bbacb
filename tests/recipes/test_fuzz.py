"""Any values of flags, any rows: the recipe trains, or ends in one clear message: no traceback, no hang."""

import csv
import dataclasses
import io
import json
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from recipes.clinical_classification import ClinicalClassificationConfig

Recipe = Callable[..., Path]
SECONDS = 60  # an example takes about half a one
fuzz = settings(
    max_examples=8,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking would train hundreds of times
    # The recipe's folder, and what is said, are new for each example.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@contextmanager
def no_hang() -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"still running after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def trains_or_says_why(recipe: Recipe, capsys: pytest.CaptureFixture[str], *flags: str, **named: Any) -> str | None:
    """The message, or None for a run that came to its end."""
    capsys.readouterr()
    with no_hang():
        try:
            folder = recipe(*flags, **named)
        except SystemExit as ended:
            status = ended.code
        else:
            assert (folder / "evaluation.json").is_file()
            return None
    said = capsys.readouterr().err
    assert status == 2, said
    assert "Traceback" not in said
    messages = re.findall(r"^error: (.+)", said, re.MULTILINE)
    assert len(messages) == 1, said
    assert len(said) < 20_000
    return messages[0]


# Flags

awkward = st.sampled_from(
    [
        *(
            "",
            " ",
            "0",
            "-1",
            "1",
            "2",
            "3.5",
            "1e400",
            "-1e-400",
            "nan",
            "inf",
            "-inf",
            "true",
            "false",
            "null",
            "auto",
        ),
        *(
            "none",
            "[]",
            "{}",
            "[1, 2]",
            "[a, b]",
            "{a: 1}",
            "[[]]",
            "[null]",
            '["',
            "{",
            "'",
            '"',
            "\\",
            "*",
            "a,b,c",
        ),
        *(
            "999999999999999999999999",
            "0x10",
            "1_000",
            "٣",
            "½",
            "..",
            ".",
            "~x",
            "a/b",
            "a/b/c",
            "-",
            "--",
            "---",
            "!!str",
        ),
        *("train", "text", "label", "patient", "eye,heart,muscle", "6GiB", "1KiB", "balanced", "regression"),
        *("nf4", "cosine", "shards", "loss", "accuracy", "single_label", "a" * 300, "💊", "\u202e", "\ud800"),
        *("multi_label_classification", "&a", "%", "hf://datasets/a/b", "file:///etc/passwd", "config.yaml"),
    ]
)
values = awkward | st.text(max_size=12) | st.integers().map(str) | st.floats().map(str)
LORA = ("lora", "lora.rank", "lora.alpha", "lora.dropout", "lora.target_modules")
FLAGS = sorted({f.name for f in dataclasses.fields(ClinicalClassificationConfig)} | set(LORA))


def is_safe(flag: str, value: str) -> bool:
    """Whether a run may have it: a folder is not to be made outside of the test's own."""
    return flag != "output_dir" or not (value.startswith(("/", "~")) or ".." in value)


flags = st.dictionaries(st.sampled_from(FLAGS), values, min_size=1, max_size=3).map(
    lambda chosen: {flag: value for flag, value in chosen.items() if is_safe(flag, value)}
)


@fuzz
@given(flags=flags)
def test_any_flags(recipe: Recipe, capsys: pytest.CaptureFixture[str], flags: dict[str, str]) -> None:
    few = {"max_steps": 1, "micro_batch_size": 8} | ({"memory_budget": "1GiB"} if "memory_budget" in flags else {})
    trains_or_says_why(recipe, capsys, **few | flags)


@fuzz
@given(
    text=st.text(max_size=200)
    | st.binary(max_size=200)
    | st.recursive(
        values, lambda v: st.dictionaries(st.sampled_from(FLAGS), v, max_size=3) | st.lists(v, max_size=3)
    ).map(json.dumps)
)
def test_any_file_of_flags(
    recipe: Recipe, capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str | bytes
) -> None:
    file = tmp_path / "flags.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode(errors="surrogatepass"))
    trains_or_says_why(recipe, capsys, f"--config={file}", max_steps=1)


# Rows

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=30)
    | st.sampled_from(["eye", "9" * 5000])
)
json_values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3)
)
columns = st.sampled_from(["text", "label", "patient"]) | st.text(max_size=5)
rows = st.dictionaries(columns, json_values, max_size=4) | st.fixed_dictionaries(
    {"text": json_values, "label": json_values}
)
lines = (
    st.binary(max_size=60)
    | rows.map(lambda row: json.dumps(row).encode(errors="surrogatepass"))
    | st.sampled_from([b'{"text": ' + b"[" * 100_000, b'{"label": ' + b"[" * 900 + b"]" * 900 + b', "text": "a"}'])
)
how = st.fixed_dictionaries(
    {
        "on_bad_row": st.sampled_from(["error", "skip"]),
        "problem": st.sampled_from(["single_label_classification", "multi_label_classification", "regression"]),
        "group_column": st.sampled_from(["text", "patient"]),
        "stream_split": st.sampled_from(["examples", "shards"]),
    }
)


def good_lines(notes: Path) -> list[bytes]:
    return (notes / "train-0.jsonl").read_bytes().splitlines()


@fuzz
@given(lines=st.lists(lines, max_size=6), num_good=st.sampled_from([0, 1, 40]), how=how)
def test_any_lines_of_json(
    recipe: Recipe,
    capsys: pytest.CaptureFixture[str],
    notes: Path,
    tmp_path: Path,
    lines: list[bytes],
    num_good: int,
    how: dict[str, str],
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n".join(good_lines(notes)[:num_good] + lines))
    trains_or_says_why(recipe, capsys, dataset=file, max_steps=2, **how)


@fuzz
@given(rows=st.lists(st.lists(st.text(max_size=20), max_size=4), max_size=6), end=st.binary(max_size=20), how=how)
def test_any_csv(
    recipe: Recipe,
    capsys: pytest.CaptureFixture[str],
    notes: Path,
    tmp_path: Path,
    rows: list[list[str]],
    end: bytes,
    how: dict[str, str],
) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    good = [list(json.loads(line).values()) for line in good_lines(notes)[:40]]
    writer.writerows([["text", "label", "patient"], *good, *rows])
    file = tmp_path / "rows.csv"
    file.write_bytes(text.getvalue().encode(errors="surrogatepass") + end)
    trains_or_says_why(recipe, capsys, dataset=file, max_steps=2, **how)


@fuzz
@given(
    spoilt=st.dictionaries(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=30), max_size=4), how=how
)
def test_any_parquet_file(
    recipe: Recipe,
    capsys: pytest.CaptureFixture[str],
    notes: Path,
    tmp_path: Path,
    spoilt: dict[float, bytes],
    how: dict[str, str],
) -> None:
    """A good one with some bytes of it replaced."""
    file = tmp_path / "rows.parquet"
    table = pa.Table.from_pylist([json.loads(line) for line in good_lines(notes)])
    pq.write_table(table, file, row_group_size=20)
    content = bytearray(file.read_bytes())
    for place, new in spoilt.items():
        start = int(place * len(content))
        content[start : start + len(new)] = new
    file.write_bytes(content)
    trains_or_says_why(recipe, capsys, dataset=file, max_steps=2, **how)


COLUMNS = {
    "texts": pa.array(["eye", "heart"] * 15),
    "large texts": pa.array(["eye", "heart"] * 15, pa.large_string()),
    "views of texts": pa.array(["eye", "heart"] * 15, pa.string_view()),
    "a dictionary": pa.array(["eye", "heart"] * 15).dictionary_encode(),
    "bytes": pa.array([b"eye", b"\xff"] * 15),
    "nulls": pa.nulls(30),
    "some nulls": pa.array(["eye", None, "heart"] * 10),
    "numbers": pa.array([0, 1] * 15),
    "unsigned numbers": pa.array([0, 2**64 - 1] * 15, pa.uint64()),
    "fractions": pa.array([0.5, float("nan"), float("inf")] * 10),
    "half floats": pa.array([0.5, 1.0] * 15).cast(pa.float16()),
    "decimals": pa.array([1, 2] * 15).cast(pa.decimal128(30, 2)),
    "switches": pa.array([True, False] * 15),
    "days": pa.array([0, 10**6] * 15, pa.date32()),
    "times beyond the calendar": pa.array([0, 2**62] * 15, pa.timestamp("us")),
    "durations": pa.array([0, 2**62] * 15, pa.duration("ns")),
    "lists of texts": pa.array([["eye"], ["eye", "heart"], []] * 10),
    "lists of lists": pa.array([[["eye"]], [[]], []] * 10),
    "objects": pa.array([{"eye": 1}, {"eye": None}] * 15),
}


@pytest.mark.parametrize("kind", COLUMNS)
@pytest.mark.parametrize("column", ["text", "label", "patient"])
def test_columns_of_any_type(
    recipe: Recipe, capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: str, column: str
) -> None:
    good = {
        "text": [f"a note, {number}" for number in range(30)],
        "label": ["eye", "heart", "muscle"] * 10,
        "patient": list(range(30)),
    }
    pq.write_table(pa.table(good | {column: COLUMNS[kind]}), tmp_path / "rows.parquet")
    problems = ("single_label_classification", "multi_label_classification", "regression")
    for problem in problems if column == "label" else problems[:1]:
        trains_or_says_why(
            recipe, capsys, dataset=tmp_path / "rows.parquet", max_steps=1, problem=problem, group_column="patient"
        )
