"""A file of rows that is written part by part, can be gone on with, and is there whole or not at all."""

import base64
import csv
import io
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date, time
from pathlib import Path
from typing import Any

import numpy as np

from hf_accum.byte_sizes import format_bytes
from hf_accum.data.formats.image_folder import ImageFile
from hf_accum.data.formats.rows import Row
from hf_accum.errors import UserError, first_line, shortened
from hf_accum.files import check_new_file, why_not_written, write_atomically, write_json, write_json_lines

FORMATS = (".jsonl", ".csv", ".parquet")
_STATE, _IMAGES = "state.json", "images"


@dataclass(frozen=True)
class Place:
    """How far the rows of a dataset were read, and what came of them."""

    shard: int = 0
    number: int = 0
    """Of the next row of the shard."""
    num_rows: int = 0
    """That are written."""
    bad_rows: Mapping[str, int] = field(default_factory=dict)
    """That are left out, by their reason."""
    remarks: Mapping[str, int] = field(default_factory=dict)
    """What is to be said, of how many rows."""
    num_cut: int = 0
    """Texts that were cut to length, and ..."""
    num_tokens_cut: int = 0
    """... their tokens that were lost."""


def check_output(path: Path) -> None:
    """Refuse a file that rows cannot be written to, before the long work.

    Raises:
        UserError: if it is there already, of another format, in no folder, or cannot be written.
    """
    if path.suffix not in FORMATS:
        raise UserError(f"`output` {path}: has to be a file .jsonl, .csv or .parquet")
    check_new_file(path)
    images, partial = _images_of(path), _partial_of(path)
    are_of_it = partial.exists() and not (partial / _IMAGES).exists()  # images come first, then the file
    for there in (path, *([] if are_of_it else [images])):
        if there.exists():
            raise UserError(f"`output` {path}: {there.name} is there already; move it, or give another file")


def _images_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}-images")


def _partial_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


class RowOutput:
    """The parts of `path` in a folder beside it, `NAME.partial`, up to where they are put together.

    `facts` tell what the rows are of: with the same ones a file is gone on with.

    Raises:
        UserError: for a file that is there already, of another format, or begun with other facts.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        check_output(path)
        self.path, self.facts = path, json.loads(json.dumps(facts))
        self.folder = _partial_of(path)
        self.images = _images_of(path)
        self.place, self._columns, self._num_parts = Place(), dict[str, None](), 0
        self._schema: Any = None
        """Of Parquet: what the parts so far have in common."""
        self._begin()

    @property
    def goes_on(self) -> bool:
        """Whether some of it was there."""
        return self._num_parts > 0

    def _begin(self) -> None:
        if not self.folder.exists():
            return
        try:
            state = json.loads((self.folder / _STATE).read_text(encoding="utf-8"))
            self.place = Place(**state["place"])
            self._columns, self._num_parts = dict.fromkeys(state["columns"]), state["num_parts"]
            facts = state["facts"]
        except FileNotFoundError:  # ended before the first part was whole
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.folder}: cannot be gone on with ({first_line(error)}); remove it") from error
        if self.path.suffix == ".parquet":
            self._schema = _common_schema(self._part(number) for number in range(self._num_parts))
        if facts != self.facts:
            others = sorted(name for name in facts | self.facts if facts.get(name) != self.facts.get(name))
            raise UserError(
                f"{self.folder}: was begun with other values of {shortened(', '.join(others), 300)}; go on with "
                "those, remove the folder, or give another `output`"
            )

    def save_image(self, name: str, image: Any) -> str:
        """Store an image beside the rows; returns its path from where the file will be.

        Raises:
            UserError: if the disk is full.
        """
        folder = self.folder / _IMAGES
        try:
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / name)
        except OSError as error:
            raise self._not_written(error) from error
        return f"{self.images.name}/{name}"

    def add(self, rows: Sequence[tuple[Row, Mapping[str, Any]]], place: Place) -> None:
        """Write some rows, each with the columns that are added to it; `place` is that behind them.

        Raises:
            UserError: if a row has a column of those that are added, a column of Parquet would have values of several
                types, or the disk is full: what was added before is kept.
        """
        added = [_flat(columns) if self.path.suffix == ".csv" else columns for _, columns in rows]
        for (row, _), columns in zip(rows, added, strict=True):
            if both := row.keys() & columns.keys():
                raise UserError(
                    f"column {min(both)!r}: is in the data, and is what a prediction is called in a file "
                    f"{self.path.suffix}: rename it there, or leave it out"
                )
        written = [{**row, **columns} for (row, _), columns in zip(rows, added, strict=True)]
        columns = self._columns | dict.fromkeys(str(name) for row in written for name in row)
        part = self._part(self._num_parts)
        table, schema = None, None
        if self.path.suffix == ".parquet":
            table, schema = _table_of(written, columns, self._schema)
        try:
            self.folder.mkdir(exist_ok=True)
            if table is not None:
                _write_table(part, table)
            else:
                write_json_lines(part, map(plain, written))
            state = {"facts": self.facts, "place": asdict(place), "columns": list(columns)}
            write_json(self.folder / _STATE, {**state, "num_parts": self._num_parts + 1})
        except OSError as error:
            raise self._not_written(error) from error
        self.place, self._columns, self._num_parts, self._schema = place, columns, self._num_parts + 1, schema

    def finish(self) -> None:
        """Put the parts together, and remove them.

        Raises:
            UserError: if the disk is full: the parts are kept.
        """
        try:
            if (self.folder / _IMAGES).is_dir():
                (self.folder / _IMAGES).rename(self.images)
            match self.path.suffix:
                case ".jsonl":
                    write_atomically(self.path, self._lines())
                case ".csv":
                    write_atomically(self.path, _csv_lines(self._columns, map(json.loads, self._lines())))
                case _:
                    self._join_tables()
        except OSError as error:
            num_bytes = sum(self._part(number).stat().st_size for number in range(self._num_parts))
            raise self._not_written(
                error, f"; put together they take about {format_bytes(num_bytes)} more"
            ) from error
        shutil.rmtree(self.folder, ignore_errors=True)

    def _not_written(self, error: OSError, more: str = "") -> UserError:
        return UserError(
            f"`output` {self.path}: cannot be written ({why_not_written(self.path, error)}); "
            f"{self.place.num_rows:,} rows are kept in {self.folder.name}, and the same command goes on from "
            f"there{more}"
        )

    def _part(self, number: int) -> Path:
        suffix = ".parquet" if self.path.suffix == ".parquet" else ".jsonl"
        return self.folder / f"{number:06d}{suffix}"

    def _lines(self) -> Iterator[str]:
        for number in range(self._num_parts):
            with self._part(number).open(encoding="utf-8") as file:
                yield from file

    def _join_tables(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema([]) if self._schema is None else self._schema
        partial = self.folder / "whole"
        try:
            with pq.ParquetWriter(partial, schema) as writer:
                for number in range(self._num_parts):
                    table = pq.read_table(self._part(number))
                    columns: list[Any] = []
                    for name, type_ in zip(schema.names, schema.types, strict=True):
                        is_there = table.schema.get_field_index(name) >= 0
                        try:
                            columns.append(table[name].cast(type_) if is_there else pa.nulls(len(table), type_))
                        except pa.ArrowInvalid as error:  # an integer that no float holds
                            raise _of_several_types(name, error) from error
                    writer.write_table(pa.table(columns, schema=schema))
            partial.replace(self.path)
        finally:
            partial.unlink(missing_ok=True)


def _common_schema(parts: Iterable[Path]) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pa.unify_schemas([pq.read_schema(part) for part in parts], promote_options="permissive")


def _table_of(rows: Sequence[Row], columns: Iterable[str], known: Any) -> tuple[Any, Any]:
    """Rows as a table, and a schema that its columns and those of a known one have in common."""
    import pyarrow as pa

    types: dict[str, Any] = {} if known is None else dict(zip(known.names, known.types, strict=True))
    arrays: dict[str, Any] = {}
    for name in columns:
        try:
            arrays[name] = pa.array([_in_table(row.get(name)) for row in rows])
            both = [pa.schema([(name, one)]) for one in (types.get(name), arrays[name].type) if one is not None]
            types[name] = pa.unify_schemas(both, promote_options="permissive").types[0]  # of all at once it is slow
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
            raise _of_several_types(name, error) from error
    return pa.table(arrays), pa.schema(list(types.items()))


def _of_several_types(name: str, error: Exception) -> UserError:
    return UserError(
        f"column {name!r}: a file .parquet has values of one type in a column, and these are of several "
        f"({first_line(error)}); give an `output` .jsonl, which takes any"
    )


def _write_table(path: Path, table: Any) -> None:
    import pyarrow.parquet as pq

    partial = path.with_name(f".{path.name}.partial")
    try:
        pq.write_table(table, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _in_table(value: Any) -> Any:
    return value.name if isinstance(value, ImageFile) else value


def _flat(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Values by name as a column each: `probabilities.NAME`."""
    flat: dict[str, Any] = {}
    for name, value in columns.items():
        flat |= (
            {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, Mapping) else {name: value}
        )
    return flat


def _csv_lines(columns: Iterable[str], rows: Iterable[Row]) -> Iterator[str]:
    names = list(columns)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    for row in _table(names, rows):
        writer.writerow(row)
        yield text.getvalue()
        text.seek(0)
        text.truncate()


def _table(names: list[str], rows: Iterable[Row]) -> Iterator[list[Any]]:
    """The header, and then a list for each row; what is no single value is written as JSON."""
    yield names
    for row in rows:
        values = (row.get(name) for name in names)
        yield [json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value for value in values]


def plain(value: Any) -> Any:
    """A value for JSON: dates as ISO 8601, bytes in base 64, the names of images in files, other things as text."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Mapping():
            return {str(name): plain(item) for name, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case ImageFile():
            return value.name
        case date() | time():
            return value.isoformat()
        case bytes():
            return base64.b64encode(value).decode("ascii")
        case np.ndarray() | np.generic():
            return plain(value.tolist())
        case _:
            return str(value)
