"""Folders of images as rows: the class by the name of an image's folder, or what files of metadata say.

As `datasets` reads them: `metadata.jsonl` or `metadata.csv` beside the images has a row for each, with its name in
`file_name`; the columns of further files (masks) end in `_file_name`, and are called without that.
"""

import posixpath
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from hf_accum.dataset_files import Stamp, stamp_of
from hf_accum.row_files import BadRow, Row, opened, read_csv, read_json
from hf_accum.seeding import derive_seed

_METADATA = ("metadata.jsonl", "metadata.csv")
_FILE_NAME = "file_name"
_NUM_SHARDS = 16


@dataclass(frozen=True)
class ImageFile:
    """An image that is one file of a dataset; `name` is what it is called in there."""

    name: str
    path: str
    stamp: Stamp | None = None

    def read(self) -> bytes:
        """Its content.

        Raises:
            ValueError: if it is a local file, and was changed or removed since the dataset was opened.
        """
        if self.stamp is not None:
            self.stamp.check(self.name)
        with opened(self.path, "rb") as file:
            return file.read()


@dataclass(frozen=True)
class ImageFolder:
    """The rows of a folder, dealt to shards by a hash of their names: each shard has images of all classes."""

    names: tuple[str, ...]
    shards: tuple[tuple[Row | BadRow, ...], ...]

    def read(self, shard: int, start: int) -> Iterator[tuple[int, Row | BadRow]]:
        """The rows of a shard from a number on."""
        yield from enumerate(self.shards[shard][start:], start)


def open_image_folder(dataset: str, files: Sequence[str]) -> ImageFolder:
    """The rows of the files of a split: columns `image` (an `ImageFile`), and `label` or what the metadata says.

    Raises:
        ValueError: for archives, for files of metadata that cannot be read, and if there is no image.
    """
    archives = [file for file in files if PurePosixPath(file).suffix.lower() in (".zip", ".tar", ".gz", ".tgz")]
    if archives or any("::" in file for file in files):
        raise ValueError(f"dataset {dataset!r}: has archives of images ({(archives or files)[0]}): unpack them first")

    described = [file for file in files if posixpath.basename(file) in _METADATA]
    images = {
        file: ImageFile(name, file, stamp_of(file))
        for file, name in _names(sorted(set(files) - set(described))).items()
        if not posixpath.basename(file).startswith("metadata.")
    }
    rows = list(_described(described, images) if described else _labelled(images))
    if not rows:
        raise ValueError(f"dataset {dataset!r}: has no image")
    rows.sort(key=lambda row: derive_seed("shard of an image", row[0]))
    shards: list[list[Row | BadRow]] = [[] for _ in range(min(_NUM_SHARDS, len(rows)))]
    for index, (_, row) in enumerate(rows):
        shards[index % len(shards)].append(row)
    names = tuple(f"images of {dataset} (part {index + 1} of {len(shards)})" for index in range(len(shards)))
    return ImageFolder(names, tuple(map(tuple, shards)))


def _names(files: Sequence[str]) -> dict[str, str]:
    """What files are called below the folder that they have in common."""
    plain = {file: file.replace("://", "/") for file in files}
    folders = [posixpath.dirname(name) for name in plain.values()]
    common = posixpath.commonpath(folders) if folders else ""
    return {file: posixpath.relpath(name, common) for file, name in plain.items()}


def _labelled(images: dict[str, ImageFile]) -> Iterator[tuple[str, Row | BadRow]]:
    for path, image in images.items():
        yield image.name, {"image": image, "label": posixpath.basename(posixpath.dirname(path))}


def _described(files: Sequence[str], images: dict[str, ImageFile]) -> Iterator[tuple[str, Row | BadRow]]:
    for file in files:
        read: Callable[[str, int], Iterator[tuple[int, Row | BadRow]]] = (
            read_json if file.endswith(".jsonl") else lambda file, start: read_csv(file, start, ",")
        )
        for number, row in read(file, 0):
            name = f"{file}:{number}"
            yield name, row if isinstance(row, BadRow) else _with_files(row, posixpath.dirname(file), images)


def _with_files(row: Row, folder: str, images: dict[str, ImageFile]) -> Row | BadRow:
    """A row of metadata with files in the place of their names: of the dataset's own, and of no other place."""
    found: dict[str, object] = {}
    for column, value in row.items():
        if column != _FILE_NAME and not column.endswith(f"_{_FILE_NAME}"):
            found[column] = value
            continue
        path = f"{folder}/{posixpath.normpath(str(value))}"
        if path not in images:
            return BadRow(column, f"{value!r} is no image of this dataset")
        found["image" if column == _FILE_NAME else column.removesuffix(f"_{_FILE_NAME}")] = images[path]
    if "image" not in found:
        return BadRow(_FILE_NAME, "no such column: it has to name the image")
    return found
