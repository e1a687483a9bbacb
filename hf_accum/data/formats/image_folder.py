"""Folders of images as rows: the class by the name of an image's folder, or what files of metadata say.

As `datasets` reads them: `metadata.jsonl`, `metadata.csv` or `metadata.parquet` beside the images has a row for each,
with its name in `file_name`; the columns of further files (masks) end in `_file_name`, and are called without that.
"""

import os
import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from hf_accum.data.dataset_files import Stamp, stamp_of
from hf_accum.data.formats.opening import opened
from hf_accum.data.formats.row_files import open_rows
from hf_accum.data.formats.rows import BadRow, Row
from hf_accum.data.retries import retried
from hf_accum.errors import OF_THE_PROGRAM, UserError, first_line, shown
from hf_accum.seeding import derive_seed

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_FILE_NAME = "file_name"
_NUM_SHARDS = 16


@dataclass(frozen=True)
class ImageFile:
    """An image that is one file of a dataset; `name` is its path in there, of no other file."""

    name: str
    path: str
    stamp: Stamp | None = None

    def read(self, column: str, most_bytes: int) -> bytes:
        """Its content; one that stands on the network is asked for again where that fails.

        Raises:
            BadRow: if it has more bytes, which are not read then, or is a local file that may not be read.
            UserError: if it is a local file, and was changed or removed since the dataset was opened; if it cannot
                be read for a reason that is not its own.
        """
        if self.stamp is not None:
            self.stamp.check(self.name)

        def whole(start: int) -> Iterator[tuple[int, bytes]]:
            if start == 0:
                yield 0, self._content(column, most_bytes)

        is_local = "://" not in self.path
        try:
            ((_, content),) = whole(0) if is_local else retried(self.name, whole, 0)
        except BadRow:
            raise
        except (FileNotFoundError, PermissionError) as error:
            if not is_local:
                raise UserError(f"{self.name}: cannot be read ({first_line(error)})") from error
            raise BadRow(column, f"{self.name} cannot be read ({first_line(error)})") from error
        except OF_THE_PROGRAM:
            raise
        except Exception as error:  # as networks and disks fail
            raise UserError(f"{self.name}: cannot be read ({first_line(error)})") from error
        return content

    def _content(self, column: str, most_bytes: int) -> bytes:
        with opened(self.path, "rb") as file:
            num_bytes = file.seek(0, os.SEEK_END)
            if num_bytes > most_bytes:
                raise BadRow(
                    column,
                    f"{self.name} has {num_bytes:,} bytes, more than the {most_bytes:,} that an image of "
                    "`max_image_pixels` may have",
                )
            file.seek(0)
            return file.read()


class NoImage(BadRow):
    """A row of metadata that names a file which is no image of the split: by its path in the dataset."""

    def __init__(self, field: str, reason: str, name: str) -> None:
        super().__init__(field, reason)
        self.name = name


@dataclass(frozen=True)
class ImageFolder:
    """The rows of a folder, dealt to shards by a hash of their names: each shard has images of all classes."""

    names: tuple[str, ...]
    shards: tuple[tuple[Row | BadRow, ...], ...]
    notes: tuple[str, ...] = ()
    """What the user should know of it."""

    def read(self, shard: int, start: int) -> Iterator[tuple[int, Row | BadRow]]:
        """The rows of a shard from a number on."""
        yield from enumerate(self.shards[shard][start:], start)


def open_image_folder(
    dataset: str, files: Sequence[str], above: Sequence[str] = (), *, labelled: bool = True
) -> ImageFolder:
    """The rows of the files of a split: columns `image` (an `ImageFile`), and `label` or what the metadata says.

    If they are not `labelled`, folders are no classes, and the rows are in the order of the metadata, or of names.

    Files are known by their paths in the dataset: the order is the same wherever it lies. Where a split has no
    metadata of its own, it has those rows of the metadata `above` the splits that name an image of it.

    Raises:
        UserError: for archives, for files of metadata that cannot be read, and if there is no image.
    """
    archives = [file for file in files if PurePosixPath(file).suffix.lower() in (".zip", ".tar", ".gz", ".tgz")]
    if archives or any("::" in file for file in files):
        raise UserError(f"dataset {dataset!r}: has archives of images ({(archives or files)[0]}): unpack them first")

    paths = {_name(dataset, file): file for file in sorted(set(files))}
    described = [name for name in paths if posixpath.basename(name) in METADATA]
    of_all_splits = not described
    if of_all_splits:
        paths |= {_name(dataset, file): file for file in sorted(above)}
        described = [name for name in paths if posixpath.basename(name) in METADATA]
    images = {
        name: ImageFile(name, path, stamp_of(path))
        for name, path in paths.items()
        if posixpath.basename(name) not in METADATA
    }
    if len({posixpath.basename(name) for name in described}) > 1:
        raise UserError(
            f"dataset {dataset!r}: has metadata in several formats ({', '.join(described[:4])}): leave one of them"
        )
    rows: list[tuple[str, Row | BadRow]] = []
    for name in described:
        try:
            found = _described(name, paths[name], images)
            rows += [row for row in found if not (of_all_splits and _is_of_another_split(row[1], dataset))]
        except OF_THE_PROGRAM:
            raise
        except Exception as error:  # files of others can be wrong in any way
            raise UserError(f"dataset {dataset!r}: {name} cannot be read ({first_line(error)})") from error
    if not described:
        rows += _labelled(images) if labelled else [(name, {"image": image}) for name, image in images.items()]
    if not rows:
        raise UserError(f"dataset {dataset!r}: has no image")
    notes = _notes(images, [row for _, row in rows]) if described else ()
    if not labelled:
        return ImageFolder((f"images of {dataset}",), (tuple(row for _, row in rows),), notes)
    rows.sort(key=lambda row: derive_seed("shard of an image", row[0]))
    shards: list[list[Row | BadRow]] = [[] for _ in range(min(_NUM_SHARDS, len(rows)))]
    for index, (_, row) in enumerate(rows):
        shards[index % len(shards)].append(row)
    names = tuple(f"images of {dataset} (part {index + 1} of {len(shards)})" for index in range(len(shards)))
    return ImageFolder(names, tuple(map(tuple, shards)), notes)


def _is_of_another_split(row: Row | BadRow, dataset: str) -> bool:
    """Whether a row is bad only because its image is not of this split, but is there."""
    return (
        isinstance(row, NoImage) and not row.name.startswith("..") and os.path.isfile(os.path.join(dataset, row.name))
    )


def _notes(images: Mapping[str, ImageFile], rows: Sequence[Row | BadRow]) -> tuple[str, ...]:
    values = (value for row in rows if isinstance(row, Mapping) for value in row.values())
    left_out = sorted(set(images) - {value.name for value in values if isinstance(value, ImageFile)})
    if not left_out:
        return ()
    return (f"left out: {len(left_out)} images that no good row of metadata names ({left_out[0]})",)


def _name(dataset: str, file: str) -> str:
    """A file's path in its dataset."""
    if "://" in file:  # hf://datasets/owner/name@commit/path
        return posixpath.normpath(file.partition("@")[2].partition("/")[2] or file)
    return PurePosixPath(os.path.relpath(file, os.path.realpath(dataset))).as_posix()


def _labelled(images: Mapping[str, ImageFile]) -> Iterator[tuple[str, Row | BadRow]]:
    """Rows of images in folders of classes, which are all equally deep: what lies elsewhere has no class."""
    depths = Counter(name.count("/") for name in images if "/" in name)
    depth = max(depths, key=lambda depth: (depths[depth], depth), default=0)
    for name, image in images.items():
        folder = posixpath.dirname(name)
        if not folder or name.count("/") != depth:
            yield name, BadRow("label", f"{name} is in no folder of a class: these have to be equally deep")
        else:
            yield name, {"image": image, "label": posixpath.basename(folder)}


def _described(name: str, path: str, images: Mapping[str, ImageFile]) -> Iterator[tuple[str, Row | BadRow]]:
    formats = {".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
    read = open_rows(path, formats[PurePosixPath(name).suffix]).read
    for number, row in retried(name, read, 0) if "://" in path else read(0):
        found = row if isinstance(row, BadRow) else _with_files(row, posixpath.dirname(name), images)
        place = f"{name}, row {number + 1}"
        if isinstance(found, NoImage):
            found = NoImage(found.field, f"{place}: {found.reason}", found.name)
        elif isinstance(found, BadRow):
            found = BadRow(found.field, f"{place}: {found.reason}", found.way_out)
        yield f"{name}:{number}", found


def _with_files(row: Row, folder: str, images: Mapping[str, ImageFile]) -> Row | BadRow:
    """A row of metadata with files in the place of their names: of the dataset's own, and of no other place."""
    found: dict[str, object] = {}
    for column, value in row.items():
        if column != _FILE_NAME and not column.endswith(f"_{_FILE_NAME}"):
            found[column] = value
            continue
        name = posixpath.normpath(posixpath.join(folder, str(value)))
        if name not in images:
            return NoImage(column, f"{shown(value)} is no image of this dataset", name)
        found["image" if column == _FILE_NAME else column.removesuffix(f"_{_FILE_NAME}")] = images[name]
    if "image" not in found:
        return BadRow(_FILE_NAME, "no such column: it has to name the image")
    return found
