"""Rows of a dataset, shard by shard, each with its place: file and row number.

`datasets` finds the files (hub id, folder, file) and streams whatever it can stream. Files of JSON lines, CSV
and Parquet are read row by row here, because a row that cannot be read has to be named, or skipped, alone.
"""

import codecs
import csv
import json
import lzma
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import fsspec

from hf_accum.errors import first_line

if TYPE_CHECKING:
    from datasets import IterableDataset

Row = Mapping[str, Any]


class BadRow(ValueError):
    """A row that cannot be used: which field, and why."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"field {field!r}: {reason}" if field else reason)
        self.field = field
        self.reason = reason


T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """A dataset as shards of rows, read in order. `names` are what messages call the shards.

    `read(shard, start)` yields (row number from 0, row or why there is none), from row `start` on.
    `class_names` holds, for columns that are typed so, the names of their classes.
    """

    names: tuple[str, ...]
    read: Callable[[int, int], Iterator[tuple[int, Row | BadRow]]]
    class_names: Mapping[str, tuple[str, ...]]

    @property
    def num_shards(self) -> int:
        """How many shards there are."""
        return len(self.names)


def good_rows(
    source: Source,
    shard: int,
    start: int,
    prepare: Callable[[Row], T | None],
    on_bad_row: Literal["error", "skip"],
    bad_rows: Counter[str],
) -> Iterator[tuple[int, T]]:
    """The rows of a shard as `prepare` makes them, each with its number; None from it leaves a row out.

    Bad rows (unreadable, or `prepare` raises `BadRow`) are counted by their reason in `bad_rows` if
    `on_bad_row` is "skip".

    Raises:
        ValueError: for a bad row, naming file, row and field.
    """
    for number, row in source.read(shard, start):
        try:
            if isinstance(row, BadRow):
                raise row
            prepared = prepare(row)
        except BadRow as bad:
            if on_bad_row == "error":
                raise ValueError(
                    f"{source.names[shard]}, row {number + 1}: {bad}; mend the row, or leave such rows out by "
                    "--on_bad_row skip"
                ) from None
            bad_rows[str(bad)] += 1
            continue
        if prepared is not None:
            yield number, prepared


def open_source(dataset: str, split: str, *, columns: Sequence[str] = (), revision: str | None = None) -> Source:
    """Open a hub id, a local folder or a local file (jsonl, json, csv, tsv, parquet) for streaming.

    `columns` are all that is read where the format allows to leave out others.

    Raises:
        ValueError: if there is no such dataset, split or column.
    """
    from datasets import load_dataset, load_dataset_builder
    from datasets.packaged_modules.csv.csv import Csv
    from datasets.packaged_modules.json.json import Json
    from datasets.packaged_modules.parquet.parquet import Parquet

    path, data_files = dataset, None
    if Path(dataset).is_file():
        path, data_files = _format_of(dataset), dataset
    elif not Path(dataset).is_dir() and (dataset.startswith((".", "/", "~")) or dataset.count("/") > 1):
        raise ValueError(f"dataset {dataset!r}: no such file or folder")
    try:
        builder = load_dataset_builder(path, data_files=data_files, revision=revision)
    except Exception as error:
        raise ValueError(
            f"dataset {dataset!r}: neither a local file or folder with data in it, nor a dataset of the hub that "
            f"can be reached ({first_line(error)})"
        ) from error
    splits = tuple(str(name) for name in builder.config.data_files or builder.info.splits or ())
    if splits and split not in splits:
        raise ValueError(f"dataset {dataset!r} has no split {split!r}: it has {', '.join(splits)}")
    features = builder.info.features or {}
    class_names = _class_names(features)
    files = [str(file) for file in (builder.config.data_files or {}).get(split, ())]
    match builder:  # a folder's or a hub dataset's is a subclass, with a name of its own
        case Json() if getattr(builder.config, "field", None) is None:
            return _of_files(files, _read_json, class_names)
        case Csv():
            is_tsv = data_files is not None and _suffix_of(dataset) == ".tsv"
            separator = "\t" if is_tsv else getattr(builder.config, "sep", None) or ","
            return _of_files(files, lambda f, start: _read_csv(f, start, separator), class_names)
        case Parquet():
            class_names = _parquet_class_names(dataset, files[0], columns) | class_names
            return _of_files(files, lambda f, start: _read_parquet(f, start, columns), class_names)
        case _:
            stream = load_dataset(path, data_files=data_files, revision=revision, split=split, streaming=True)
            return of_dataset(stream, class_names)


def of_dataset(dataset: "IterableDataset", class_names: Mapping[str, tuple[str, ...]] | None = None) -> Source:
    """A Source over any streamed `datasets.IterableDataset`."""

    def read(shard: int, start: int) -> Iterator[tuple[int, Row | BadRow]]:
        rows = dataset.shard(num_shards=dataset.num_shards, index=shard)
        yield from enumerate(rows.skip(start) if start else rows, start)

    return Source(tuple(f"shard {i}" for i in range(dataset.num_shards)), read, class_names or {})


def _suffix_of(file: str) -> str:
    name = file.removesuffix(".gz").removesuffix(".zst").removesuffix(".bz2").removesuffix(".xz")
    return PurePosixPath(name).suffix.lower()


def _format_of(file: str) -> str:
    formats = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".tsv": "csv"}
    suffix = _suffix_of(file)
    if suffix == ".parquet":
        return "parquet"
    if suffix not in formats:
        raise ValueError(f"dataset {file!r}: a file has to be .jsonl, .json, .csv, .tsv or .parquet")
    return formats[suffix]


def _of_files(
    files: Sequence[str],
    read: Callable[[str, int], Iterator[tuple[int, Row | BadRow]]],
    class_names: Mapping[str, tuple[str, ...]],
) -> Source:
    common = os.path.commonpath([str(PurePosixPath(file).parent) for file in files])
    names = tuple(os.path.relpath(file, common) for file in files)

    def read_shard(shard: int, start: int) -> Iterator[tuple[int, Row | BadRow]]:
        try:
            yield from read(files[shard], start)
        except (OSError, EOFError, ValueError, csv.Error, zlib.error, lzma.LZMAError) as error:
            raise ValueError(f"{names[shard]}: cannot be read ({first_line(error)})") from error

    return Source(names, read_shard, class_names)


def _opened(file: str, mode: str, **how: Any) -> AbstractContextManager[Any]:
    """A file for reading, local or of a hub; fsspec's own type leaves open which."""
    return fsspec.open(file, mode, **how)  # type: ignore[return-value]


def _read_json(file: str, start: int) -> Iterator[tuple[int, Row | BadRow]]:
    with _opened(file, "rb", compression="infer") as lines:
        first = lines.read(64).removeprefix(codecs.BOM_UTF8).lstrip()
        lines.seek(0)
        if first.startswith(b"["):  # one JSON array: it has to be read whole
            for number, value in enumerate(json.load(lines)):
                if number >= start:
                    yield number, _json_row(value)
            return
        for number, line in enumerate(lines):
            if number < start or not line.strip():
                continue
            try:
                yield number, _json_row(json.loads(line.decode("utf-8-sig" if number == 0 else "utf-8")))
            except UnicodeDecodeError as error:
                yield number, BadRow("", f"not UTF-8 (byte {error.start + 1} of the line)")
            except json.JSONDecodeError as error:
                yield number, BadRow("", f"not JSON ({error.msg}, column {error.colno})")
            except (ValueError, RecursionError) as error:  # numbers too long, brackets too deep
                yield number, BadRow("", f"not JSON that can be read ({first_line(error)})")


def _json_row(value: Any) -> Row | BadRow:
    return value if isinstance(value, dict) else BadRow("", f"a JSON {type(value).__name__}, not an object")


def _read_csv(file: str, start: int, separator: str) -> Iterator[tuple[int, Row | BadRow]]:
    csv.field_size_limit(2**31 - 1)  # clinical notes are longer than the 128 KiB that csv allows
    # Bytes that are not UTF-8 come through as lone surrogates, so that only their own row is bad.
    how = {"encoding": "utf-8-sig", "errors": "surrogateescape", "newline": ""}
    with _opened(file, "rt", compression="infer", **how) as lines:
        header = next(filter(None, csv.reader(lines, delimiter=separator)), [])  # blank lines are no rows
        if len(set(header)) < len(header):
            raise ValueError(f"two columns have the same name: {', '.join(header)}")
        reader = csv.DictReader(lines, header, delimiter=separator, restkey="", restval=None)
        for number, row in enumerate(reader):
            if number >= start:
                yield number, _csv_row(row)


def _csv_row(row: dict[str, Any]) -> Row | BadRow:
    if "" in row and isinstance(row[""], list):
        return BadRow("", f"{len(row[''])} more fields than the header")
    for field, value in row.items():
        if value is None:
            return BadRow(field, "missing: the row has fewer fields than the header")
        if any("\udc80" <= character <= "\udcff" for character in value):
            return BadRow(field, "not UTF-8")
    return row


def _read_parquet(file: str, start: int, columns: Sequence[str]) -> Iterator[tuple[int, Row | BadRow]]:
    import pyarrow.parquet as pq

    with _opened(file, "rb") as raw, pq.ParquetFile(raw) as parquet:
        present = parquet.schema_arrow.names
        wanted = [name for name in columns if name in present] or None
        number = 0
        for group in range(parquet.num_row_groups):
            group_rows = parquet.metadata.row_group(group).num_rows
            if number + group_rows <= start:
                number += group_rows
                continue
            for batch in parquet.iter_batches(batch_size=1024, row_groups=[group], columns=wanted):
                for row in _parquet_rows(batch):
                    if number >= start:
                        yield number, row
                    number += 1


def _class_names(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Of columns of classes, and of lists of them."""
    items = {name: getattr(feature, "feature", feature) for name, feature in features.items()}
    return {name: tuple(item.names) for name, item in items.items() if hasattr(item, "names")}


def _parquet_class_names(dataset: str, file: str, columns: Sequence[str]) -> dict[str, tuple[str, ...]]:
    import pyarrow.parquet as pq
    from datasets import Features

    try:
        with _opened(file, "rb") as raw:
            schema = pq.read_schema(raw)
    except (OSError, ValueError) as error:
        raise ValueError(f"dataset {dataset!r}: {file} cannot be read ({first_line(error)})") from error
    for column in columns:
        if column not in schema.names:
            raise ValueError(f"dataset {dataset!r} has no column {column!r}: it has {', '.join(schema.names)}")
    return _class_names(Features.from_arrow_schema(schema))


def _parquet_rows(batch: Any) -> list[Row | BadRow]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        return [_parquet_row(batch, index) for index in range(batch.num_rows)]


def _parquet_row(batch: Any, index: int) -> Row | BadRow:
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[index].as_py()
        except UnicodeDecodeError:
            return BadRow(name, "not UTF-8")
    return row
