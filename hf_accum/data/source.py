"""Rows of a dataset, shard by shard, each with its place: file and row number.

`datasets` finds the files (hub id, folder, file) and streams whatever it can stream. Files of JSON lines, CSV
and Parquet are read row by row (`formats.rows`): a row that cannot be read has to be named, or skipped, alone.
"""

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from hf_accum.data.dataset_files import Stamp, check_folder, check_inside, stamp_of
from hf_accum.data.formats.image_folder import open_image_folder
from hf_accum.data.formats.rows import BadColumn, BadRow, Row, opened, read_csv, read_json, read_parquet
from hf_accum.data.retries import retried
from hf_accum.errors import OF_THE_PROGRAM, UserError, first_line

if TYPE_CHECKING:
    from datasets import IterableDataset

T = TypeVar("T")
Read = Callable[[int, int], Iterator[tuple[int, Row | BadRow]]]
MOST_REASONS = 20
OTHER_REASONS = "other reasons"


@dataclass(frozen=True)
class Source:
    """A dataset as shards of rows, read in order. `names` are what messages call the shards.

    `read(shard, start)` yields (row number from 0, row or why there is none), from row `start` on.
    `class_names` holds, for columns that are typed so, the names of their classes. Where rows were cut into parts,
    the numbers are those of the parts: `parts_per_row` of them to a row, whether they are all there or not.
    """

    names: tuple[str, ...]
    read: Read
    class_names: Mapping[str, tuple[str, ...]]
    parts_per_row: int = 1
    notes: tuple[str, ...] = ()
    """What the user should know of it."""

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
        UserError: for a bad row, naming file, row and field; for a bad column always.
    """
    for number, row in source.read(shard, start):
        try:
            if isinstance(row, BadRow):
                raise row
            prepared = prepare(row)
        except BadRow as bad:
            row_number = number // source.parts_per_row + 1
            if isinstance(bad, BadColumn):
                raise UserError(f"{source.names[shard]}, row {row_number}: {bad}") from None
            if on_bad_row == "error":
                raise UserError(
                    f"{source.names[shard]}, row {row_number}: {bad}; mend the row or the flags, or leave "
                    "such rows out by `on_bad_row skip`"
                ) from None
            reason = str(bad)
            # Reasons quote values: of a column of free text each row would have its own, without end.
            bad_rows[reason if reason in bad_rows or len(bad_rows) < MOST_REASONS else OTHER_REASONS] += 1
            continue
        if prepared is not None:
            yield number, prepared


def in_parts(source: Source, parts_of: Callable[[Row], Sequence[Row]], most: int) -> Source:
    """A dataset whose rows are cut into parts, each a row of its own then: at most so many of a row.

    `parts_of` raises `BadRow` for a row that cannot be cut. A place in the middle of a row is found without reading
    the rows before it.
    """

    def read(shard: int, start: int) -> Iterator[tuple[int, Row | BadRow]]:
        row_number, first = divmod(start, most)
        for number, row in source.read(shard, row_number):
            if isinstance(row, BadRow):
                yield number * most, row
                continue
            try:
                parts = parts_of(row)
                if len(parts) > most:
                    raise BadRow("", f"cut into {len(parts):,} parts: it has to be at most {most:,}")
            except BadRow as bad:
                yield number * most, bad
                continue
            for index, part in enumerate(parts):
                if number > row_number or index >= first:
                    yield number * most + index, part

    return Source(source.names, read, source.class_names, most)


def open_source(dataset: str, split: str, *, columns: Sequence[str] = (), revision: str | None = None) -> Source:
    """Open a hub id, a local folder or a local file (jsonl, json, csv, tsv, parquet) for streaming.

    `columns` are all that is read where the format allows to leave out others. `revision` is one of the hub's
    repository. Nothing outside of the dataset is read, and no code of it is run. A local file that is changed
    between two passes, or while it is read, is an error.

    Raises:
        UserError: if there is no such dataset, split or column, or it names files outside of it.
    """
    from datasets import load_dataset, load_dataset_builder
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
    from datasets.packaged_modules.csv.csv import Csv
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
    from datasets.packaged_modules.json.json import Json
    from datasets.packaged_modules.parquet.parquet import Parquet

    path, data_files = dataset, None
    if os.path.isfile(dataset):
        path, data_files = _format_of(dataset), glob.escape(dataset)
    elif not os.path.isdir(dataset) and (dataset.startswith((".", "/", "~")) or dataset.count("/") > 1):
        raise UserError(f"dataset {dataset!r}: no such file or folder")
    elif dataset in _PACKAGED_DATASETS_MODULES and not os.path.isdir(dataset):
        raise UserError(f"dataset {dataset!r}: is the name of a format; give a file, a folder or an id of the hub")
    if revision is not None and os.path.exists(dataset):
        raise UserError(
            f"`dataset_revision` {revision}: has to be left out with a local dataset ({dataset}), which has only "
            "what is in it"
        )
    check_folder(dataset)
    try:
        builder = load_dataset_builder(path, data_files=data_files, revision=revision)
    except Exception as error:
        raise UserError(
            f"dataset {dataset!r}: neither a local file or folder with data in it, nor a dataset of the hub that "
            f"can be reached ({first_line(error)})"
        ) from error
    splits = tuple(str(name) for name in builder.config.data_files or builder.info.splits or ())
    if splits and split not in splits:
        raise UserError(f"dataset {dataset!r} has no split {split!r}: it has {', '.join(splits)}")
    features = builder.info.features or {}
    class_names = _class_names(features)
    files = [str(file) for file in (builder.config.data_files or {}).get(split, ())]
    if data_files is None:
        check_inside(dataset, files)
    match builder:  # a folder's or a hub dataset's is a subclass, with a name of its own
        case Json() if getattr(builder.config, "field", None) is None:
            return of_files(files, read_json, class_names)
        case Csv():
            is_tsv = data_files is not None and _suffix_of(dataset) == ".tsv"
            separator = "\t" if is_tsv else getattr(builder.config, "sep", None) or ","
            return of_files(files, lambda f, start: read_csv(f, start, separator), class_names)
        case Parquet():
            class_names = _parquet_class_names(dataset, files, columns) | class_names
            return of_files(files, lambda f, start: read_parquet(f, start, columns), class_names)
        case ImageFolder():
            images = open_image_folder(dataset, files)
            return Source(images.names, images.read, class_names, notes=images.notes)
        case _:
            try:
                stream = load_dataset(path, data_files=data_files, revision=revision, split=split, streaming=True)
            except Exception as error:
                raise UserError(f"dataset {dataset!r}: cannot be read ({first_line(error)})") from error
            # Without decoding: rows of media hold paths, which would be opened wherever they lead.
            return of_dataset(stream.decode(False) if stream.features else stream, class_names, files)


def of_dataset(
    dataset: "IterableDataset",
    class_names: Mapping[str, tuple[str, ...]] | None = None,
    files: Sequence[str] = (),
) -> Source:
    """A Source over any streamed `datasets.IterableDataset`, whose passes have to have equally many rows.

    Local `files` that it is read from have to stay as they are, and what is wrong with them is told as of a file.
    """

    def read(shard: int, start: int) -> Iterator[tuple[int, Row | BadRow]]:
        rows = dataset.shard(num_shards=dataset.num_shards, index=shard)
        yield from enumerate(rows.skip(start) if start else rows, start)

    names = tuple(f"shard {i}" for i in range(dataset.num_shards))
    stamps = {file: stamp for file in files if (stamp := stamp_of(file))}
    checked = _checked(names, read, dict.fromkeys(range(len(names)), stamps)) if files else read
    return Source(names, _of_equal_passes(names, checked), class_names or {})


def _suffix_of(file: str) -> str:
    name = file.removesuffix(".gz").removesuffix(".zst").removesuffix(".bz2").removesuffix(".xz")
    return PurePosixPath(name).suffix.lower()


def _format_of(file: str) -> str:
    formats = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".tsv": "csv"}
    suffix = _suffix_of(file)
    if suffix == ".parquet":
        return "parquet"
    if suffix not in formats:
        raise UserError(f"dataset {file!r}: a file has to be .jsonl, .json, .csv, .tsv or .parquet")
    return formats[suffix]


def of_files(
    files: Sequence[str],
    read: Callable[[str, int], Iterator[tuple[int, Row | BadRow]]],
    class_names: Mapping[str, tuple[str, ...]],
    *,
    notes: tuple[str, ...] = (),
    beside: Callable[[str], str] | None = None,
) -> Source:
    """A Source over files, of which `read(file, start)` gives the rows from a number on.

    A local file has to stay as it is, and so does the one `beside` it, if its rows are read from two.
    """
    common = os.path.commonpath([str(PurePosixPath(file).parent) for file in files])
    names = tuple(os.path.relpath(file, common) for file in files)

    of_shards = ((file, beside(file)) if beside else (file,) for file in files)
    stamps = {
        i: {os.path.relpath(file, common): stamp for file in of_shard if (stamp := stamp_of(file))}
        for i, of_shard in enumerate(of_shards)
    }

    def of_shard(shard: int, start: int) -> Iterator[tuple[int, Row | BadRow]]:
        file = files[shard]
        if "://" in file:
            return retried(names[shard], lambda following: read(file, following), start)
        return read(file, start)

    return Source(names, _checked(names, of_shard, stamps), class_names, notes=notes)


def _checked(names: Sequence[str], read: Read, stamps: Mapping[int, Mapping[str, Stamp]]) -> Read:
    """`read` of files, whose errors name the file and the last good row, and which have to stay as they were."""

    def check(shard: int) -> None:
        for name, stamp in stamps.get(shard, {}).items():
            stamp.check(name)

    def checked(shard: int, start: int) -> Iterator[tuple[int, Row | BadRow]]:
        check(shard)
        last = start
        try:
            for number, row in read(shard, start):
                last = number + 1
                yield number, row
        except OF_THE_PROGRAM:
            raise
        except Exception as error:
            check(shard)  # rather this than what came of it
            after = f" after row {last}" if last > start else ""
            raise UserError(f"{names[shard]}: cannot be read{after} ({first_line(error)})") from error
        check(shard)

    return checked


def _of_equal_passes(names: Sequence[str], read: Read) -> Read:
    """`read`, whose whole passes over a shard have to have equally many rows."""
    num_rows: dict[int, int] = {}

    def counted(shard: int, start: int) -> Iterator[tuple[int, Row | BadRow]]:
        end = start
        for number, row in read(shard, start):
            end = number + 1
            yield number, row
        if (start == 0 or end > start) and num_rows.setdefault(shard, end) != end:
            raise UserError(
                f"{names[shard]}: has {end} rows now, and had {num_rows[shard]} before: each pass has to see the "
                "same dataset"
            )

    return counted


def _class_names(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Of columns of classes, and of lists of them."""
    items = {name: getattr(feature, "feature", feature) for name, feature in features.items()}
    return {name: tuple(item.names) for name, item in items.items() if hasattr(item, "names")}


def _parquet_class_names(dataset: str, files: Sequence[str], columns: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """From the first file; of the others, where they are local and it takes no time, it is checked that they open."""
    import pyarrow.parquet as pq
    from datasets import Features

    class_names: dict[str, tuple[str, ...]] = {}
    for index, file in enumerate(files):
        if index and stamp_of(file) is None:
            continue
        try:
            with opened(file, "rb") as raw:
                schema = pq.read_schema(raw)
            found = _class_names(Features.from_arrow_schema(schema)) if index == 0 else class_names
        except Exception as error:
            raise UserError(f"dataset {dataset!r}: {file} cannot be read ({first_line(error)})") from error
        for column in columns:
            if column not in schema.names:
                where = f"in {file} " if len(files) > 1 else ""
                raise UserError(
                    f"dataset {dataset!r} {where}has no column {column!r}: it has {', '.join(schema.names)}"
                )
        class_names = found
    return class_names
