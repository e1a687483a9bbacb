"""Rows of a dataset, shard by shard, each with its place: file and row number.

`datasets` finds the files (hub id, folder, file) and streams whatever it can stream. Files of JSON lines, CSV
and Parquet are read row by row (`formats.rows`): a row that cannot be read has to be named, or skipped, alone.
"""

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from hf_accum.data.dataset_files import check_folder, check_inside, described_features, has_configs, stamp_of
from hf_accum.data.file_shards import common_folder, open_files
from hf_accum.data.folder import TRAIN, files_of, left_out_note, unread_files
from hf_accum.data.formats.csv_form import Quoting
from hf_accum.data.formats.image_folder import open_image_folder
from hf_accum.data.formats.row_files import class_names_of, format_of
from hf_accum.data.formats.rows import BadColumn, BadRow, Row
from hf_accum.data.formats.saved import SavedRows, open_saved, saved_splits
from hf_accum.data.read_checks import Read, checked, of_equal_passes
from hf_accum.data.retries import retried
from hf_accum.data.skipped_rows import SkippedRows
from hf_accum.errors import UserError, first_line, shortened

if TYPE_CHECKING:
    from datasets import IterableDataset

T = TypeVar("T")
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
    splits: tuple[str, ...] = ()
    """All that the dataset has, as far as they are known."""
    num_quoted_lines: Callable[[int], int] = lambda shard: 0
    """Of a shard, once it was read to its end: lines that lie within quoted fields of CSV."""

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
    skipped: SkippedRows | None = None,
) -> Iterator[tuple[int, T]]:
    """The rows of a shard as `prepare` makes them, each with its number; None from it leaves a row out.

    Bad rows (unreadable, or `prepare` raises `BadRow`) are counted by their reason in `bad_rows` if
    `on_bad_row` is "skip". All rows are counted in `skipped`.

    Raises:
        UserError: for a bad row, naming file, row and field; for a bad column always; if too many were skipped.
    """
    for number, row in source.read(shard, start):
        try:
            if isinstance(row, BadRow):
                raise row
            prepared = prepare(row)
        except BadRow as bad:
            if on_bad_row == "error" or isinstance(bad, BadColumn):
                raise refused(source, shard, number, bad) from None
            reason = str(bad)
            # Reasons quote values: of a column of free text each row would have its own, without end.
            reason = reason if reason in bad_rows or len(bad_rows) < MOST_REASONS else OTHER_REASONS
            bad_rows[reason] += 1
            if skipped is not None:
                skipped.count(reason)
            continue
        if skipped is not None:
            skipped.count(None)
        if prepared is not None:
            yield number, prepared


def refused(source: Source, shard: int, number: int, bad: BadRow) -> UserError:
    """What is said of a bad row that is not left out."""
    where = f"{source.names[shard]}, row {number // source.parts_per_row + 1}: {bad}"
    if isinstance(bad, BadColumn):
        return UserError(where)
    way_out = bad.way_out or "mend the row or the flags"
    return UserError(f"{where}; {way_out}, or leave such rows out by `on_bad_row skip`")


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

    return replace(source, read=read, parts_per_row=most)


def open_source(
    dataset: str,
    split: str,
    *,
    columns: Sequence[str] = (),
    revision: str | None = None,
    config: str | None = None,
    quoting: Quoting = "auto",
    labelled: bool = True,
) -> Source:
    """Open a hub id, a local folder or a local file (jsonl, json, csv, tsv, parquet, xlsx) for streaming.

    `columns` are those that are needed; others are read where the format has it so. `revision` is one of the hub's
    repository, `config` a configuration of the dataset. Folders of images that are not `labelled` are no classes.
    Nothing outside of the dataset is read, and no code of it is run. A local file that is changed between two passes,
    or while it is read, is an error. Files of a local folder that are not read are named in the notes.

    Raises:
        UserError: if there is no such dataset, split or column, or it names files outside of it.
    """
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    is_local = os.path.exists(dataset)
    if not is_local and (dataset.startswith((".", "/", "~")) or dataset.count("/") > 1):
        raise UserError(f"dataset {dataset!r}: no such file or folder")
    if dataset in _PACKAGED_DATASETS_MODULES and not os.path.isdir(dataset):
        raise UserError(f"dataset {dataset!r}: is the name of a format; give a file, a folder or an id of the hub")
    if revision is not None and is_local:
        raise UserError(
            f"`dataset_revision` {revision}: has to be left out with a local dataset ({dataset}), which has only "
            "what is in it"
        )
    check_folder(dataset)
    is_described = os.path.isdir(dataset) and has_configs(dataset)
    if config is not None and is_local and not is_described:
        raise UserError(f"`dataset_config` {config}: has to be left out with {dataset}, which describes none")
    if os.path.isfile(dataset):
        format_ = format_of(dataset)
        if format_ is None:
            raise UserError(
                f"dataset {dataset!r}: a file has to be .jsonl, .json, .csv, .tsv, .parquet or .xlsx (or such a file "
                "compressed: .gz, .bz2, .xz, .zst)"
            )
        _check_split(dataset, split, (TRAIN,))
        return replace(_of_rows(dataset, [dataset], columns, quoting), splits=(TRAIN,))
    if not is_local or is_described:
        return _of_library(dataset, split, columns, quoting, revision=revision, config=config)
    if saved := saved_splits(dataset):
        _check_split(dataset, split, tuple(saved))
        return replace(_of_saved(open_saved(saved[split], columns)), splits=tuple(saved))
    return _of_folder(dataset, split, columns, quoting, labelled)


def _check_split(dataset: str, split: str, splits: Sequence[str]) -> None:
    if splits and split not in splits:
        raise UserError(f"dataset {dataset!r} has no split {split!r}: it has {', '.join(splits)}")


def _of_folder(dataset: str, split: str, columns: Sequence[str], quoting: Quoting, labelled: bool) -> Source:
    """A local folder that says nothing of its files but their names."""
    found = files_of(dataset)
    splits = tuple(found.splits)
    if found.kind == "others":
        data_files = {name: [glob.escape(file) for file in files] for name, files in found.splits.items()}
        is_plain = not os.path.exists(os.path.join(dataset, "README.md"))  # or it describes the columns of its files
        source = _of_library(dataset, split, columns, quoting, data_files=(data_files or None) if is_plain else None)
        return replace(source, notes=(*source.notes, *found.notes))
    _check_split(dataset, split, splits)
    root = os.path.realpath(dataset)
    files = [os.path.join(root, file) for file in found.splits[split]]
    above = [os.path.join(root, file) for file in found.above]
    check_inside(dataset, [*files, *above])
    class_names = class_names_of(described_features(dataset))
    if found.kind == "images":
        images = open_image_folder(dataset, files, above, labelled=labelled)
        source = Source(images.names, images.read, class_names, notes=images.notes)
    else:
        source = _of_rows(dataset, files, columns, quoting, class_names)
    opened = {os.path.realpath(file) for file in files}
    left_out = [file for file in found.left_out if os.path.realpath(os.path.join(root, file)) not in opened]
    return replace(source, splits=splits, notes=(*source.notes, *found.notes, *left_out_note(left_out)))


def _of_library(
    dataset: str, split: str, columns: Sequence[str], quoting: Quoting, *, config: str | None = None, **where: Any
) -> Source:
    """A dataset of which `datasets` finds the files: of the hub, described by a card, or of other formats."""
    from datasets import load_dataset, load_dataset_builder
    from datasets.packaged_modules.csv.csv import Csv
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
    from datasets.packaged_modules.json.json import Json
    from datasets.packaged_modules.parquet.parquet import Parquet

    if config is not None:
        where["name"] = config
    try:
        builder = load_dataset_builder(dataset, **where)
    except Exception as error:
        if isinstance(error, ValueError) and "config" in str(error).lower():
            said = shortened(" ".join(str(error).split()), 400)
            raise UserError(
                f"dataset {dataset!r}: give one of its configurations by `dataset_config` ({said})"
            ) from error
        raise UserError(
            f"dataset {dataset!r}: neither a local file or folder with data in it, nor a dataset of the hub that "
            f"can be reached ({first_line(error)})"
        ) from error
    by_split = builder.config.data_files or {}
    splits = tuple(str(name) for name in by_split or builder.info.splits or ())
    _check_split(dataset, split, splits)
    class_names = class_names_of(builder.info.features or {})
    files = [str(file) for file in by_split.get(split, ())]
    check_inside(dataset, files)
    is_packed = any(PurePosixPath(file).suffix.lower() in (".zip", ".tar", ".tgz") for file in files)
    match builder:  # a folder's or a hub dataset's is a subclass, with a name of its own
        case Json() if getattr(builder.config, "field", None) is None and not is_packed:
            source = _of_rows(dataset, files, columns, quoting, class_names, "json")
        case Csv() if not is_packed:
            separator = getattr(builder.config, "sep", ",")
            fixed = None if separator == "," else separator  # which is said by nobody: it may be another
            source = _of_rows(dataset, files, columns, quoting, class_names, "csv", fixed)
        case Parquet() if not is_packed:
            source = _of_rows(dataset, files, columns, quoting, class_names, "parquet")
        case ImageFolder():
            images = open_image_folder(dataset, files)
            source = Source(images.names, images.read, class_names, notes=images.notes)
        case _:
            try:
                stream = load_dataset(dataset, split=split, streaming=True, **where)
            except Exception as error:
                raise UserError(f"dataset {dataset!r}: cannot be read ({first_line(error)})") from error
            # Without decoding: rows of media hold paths, which would be opened wherever they lead.
            source = of_dataset(stream.decode(False) if stream.features else stream, class_names, files)
    left_out = unread_files(dataset, [str(file) for files in by_split.values() for file in files])
    return replace(source, splits=splits, notes=(*source.notes, *left_out_note(left_out)))


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
    reading = checked(names, read, dict.fromkeys(range(len(names)), stamps)) if files else read
    return Source(names, of_equal_passes(names, reading), class_names or {})


def _of_saved(saved: SavedRows) -> Source:
    """A folder of `save_to_disk`."""
    name = os.path.basename(os.path.dirname(saved.files[0])) if saved.files else "rows"
    stamps = {0: {os.path.basename(file): stamp for file in saved.files if (stamp := stamp_of(file))}}
    read = checked((name,), lambda _, start: saved.read(start), stamps)
    return Source((name,), read, class_names_of(saved.features))


def _of_rows(
    dataset: str,
    files: Sequence[str],
    columns: Sequence[str],
    quoting: Quoting,
    class_names: Mapping[str, tuple[str, ...]] | None = None,
    format_: str | None = None,
    separator: str | None = None,
) -> Source:
    """Files of rows; their format is that of their names, where it is not given."""
    opened = open_files(dataset, files, columns, quoting, class_names or {}, format_, separator)
    source = of_files(files, opened.read, opened.class_names, notes=opened.notes)

    def num_quoted_lines(shard: int) -> int:
        return opened.num_quoted_lines(files[shard])

    return replace(source, num_quoted_lines=num_quoted_lines)


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
    common = common_folder(files)
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

    return Source(names, checked(names, of_shard, stamps), class_names, notes=notes)
