"""The files of a local folder: which are rows, which images, and which of them are of which split.

A name makes a split where it is one as a whole: a file `train.csv`, `test-00000-of-00004.parquet`, or a folder
`train/`. A file `ward_train.csv` among others is one more file of rows, and so is an image `train-7.png`.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath

from hf_accum.data.formats.image_folder import METADATA
from hf_accum.data.formats.opening import suffix_of
from hf_accum.data.formats.row_files import format_of
from hf_accum.errors import shortened

TRAIN = "train"
_WORDS = {
    "train": (TRAIN, "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLITS = {word: split for split, words in _WORDS.items() for word in words}
_NUMBERED = re.compile(r"([a-z]+)(?:[-_. ]?\d+(?:[-_ ]?of[-_ ]?\d+)?)?")  # train, train-0, train-00000-of-00004
_SHARD = re.compile(r"(\w+)-\d{5}-of-\d{5}.*")  # of any split, in a folder data/, as `datasets` writes it
_IGNORED = re.compile(
    r"readme.*|licen[cs]e.*|citation.*|.*\.md|thumbs\.db|desktop\.ini|config\.json|dataset_infos?\.json"
    r"|dataset_dict\.json",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class FolderFiles:
    """Paths in a folder, by split. `kind` is what they are: rows, images (and their metadata), or others."""

    kind: str
    splits: Mapping[str, tuple[str, ...]]
    left_out: tuple[str, ...] = ()
    """Of no split, or of another kind."""
    above: tuple[str, ...] = ()
    """Metadata of images that lies above the folders of the splits."""
    notes: tuple[str, ...] = ()


def list_files(folder: str) -> list[str]:
    """The paths in a folder, in order, without hidden files and those that describe it."""

    def inside(place: str, above: frozenset[str]) -> Iterator[str]:
        real = os.path.realpath(place)
        if real in above:  # a link to a folder that it lies in
            return
        for entry in sorted(os.scandir(place), key=lambda entry: entry.name):
            if entry.name.startswith(".") or (entry.is_dir() and entry.name.startswith("__")):
                continue
            if entry.is_dir():
                yield from inside(entry.path, above | {real})
            elif not _IGNORED.fullmatch(entry.name):
                yield os.path.relpath(entry.path, folder).replace(os.sep, "/")

    return list(inside(folder, frozenset()))


def files_of(folder: str) -> FolderFiles:
    """What is in a folder."""
    files = list_files(folder)
    rows = [file for file in files if format_of(file)]
    images = [file for file in files if suffix_of(file) in _image_suffixes()]
    described = [file for file in rows if PurePosixPath(file).name in METADATA]
    if len(images) > len(rows) - len(described):
        archives = [file for file in files if suffix_of(file) in (".zip", ".tar", ".tgz")]
        return _images(files, [*images, *described, *archives])
    if rows and (len(described) < len(rows) or len(described) == len(files)):
        return _split("rows", files, rows, _split_by_name)
    return _split("others", files, [file for file in files if _is_of_library(file)], _split_by_name)


def _images(files: Sequence[str], wanted: Sequence[str]) -> FolderFiles:
    found = _split("images", files, wanted, _split_by_folder)
    if set(found.splits) == {TRAIN} and not found.left_out:
        return found
    above = tuple(file for file in found.left_out if PurePosixPath(file).name in METADATA)
    left_out = tuple(file for file in found.left_out if file not in above)
    return FolderFiles("images", found.splits, left_out, above, found.notes)


def _split(
    kind: str, files: Sequence[str], wanted: Sequence[str], split_of: Callable[[str], str | None]
) -> FolderFiles:
    splits: dict[str, list[str]] = defaultdict(list)
    of_no_split: list[str] = []
    for file in wanted:
        split = split_of(file)
        (of_no_split if split is None else splits[split]).append(file)
    notes: list[str] = []
    if not splits:
        by_words = {file: _split_by_part(file) for file in wanted} if kind != "images" else {}
        found = Counter(by_words.values())
        if len(found) > 1 and None not in found:  # each has one: the names differ by it
            for file, split in by_words.items():
                splits[str(split)].append(file)
            of_no_split = []
        else:
            splits[TRAIN], of_no_split = of_no_split, []
            if odd := [file for file, split in by_words.items() if split not in (None, TRAIN)]:
                notes.append(
                    f"{_named(odd)} is no split by its name, and read with the others: a split's name is that of the "
                    "whole file or folder (test.csv, test/)"
                )
    other = set(files) - set(wanted)
    left_out = tuple(file for file in files if file in other or file in of_no_split)
    return FolderFiles(kind, {name: tuple(of) for name, of in splits.items() if of}, left_out, (), tuple(notes))


def _split_by_folder(file: str) -> str | None:
    parts = PurePosixPath(file).parent.parts
    return next((_SPLITS[part.casefold()] for part in parts if part.casefold() in _SPLITS), None)


def _split_by_name(file: str) -> str | None:
    split = _split_by_folder(file)
    if split is not None:
        return split
    stem = _stem(file)
    if (shard := _SHARD.fullmatch(stem)) and PurePosixPath(file).parent.name == "data":
        return _SPLITS.get(shard[1].casefold(), shard[1])
    numbered = _NUMBERED.fullmatch(stem.casefold())
    return _SPLITS.get(numbered[1]) if numbered else None


def _split_by_part(file: str) -> str | None:
    """By a word in the name, of which there are several."""
    found = {_SPLITS[word] for word in re.split(r"[^a-z]+", _stem(file).casefold()) if word in _SPLITS}
    return found.pop() if len(found) == 1 else None


def _stem(file: str) -> str:
    name = PurePosixPath(file).name
    suffix = suffix_of(name)
    return name[: name.lower().rindex(suffix)] if suffix else name


@cache
def _image_suffixes() -> frozenset[str]:
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    return frozenset(suffix.lower() for suffix in ImageFolder.EXTENSIONS)


def _is_of_library(file: str) -> bool:
    """Whether `datasets` has a format for a file, by one of its suffixes."""
    from datasets.load import _ALL_ALLOWED_EXTENSIONS

    return any(f".{suffix}" in _ALL_ALLOWED_EXTENSIONS for suffix in PurePosixPath(file).name.split(".")[1:])


def unread_files(folder: str, opened: Iterable[str]) -> list[str]:
    """Of a local folder's files those that are not among the opened ones, nor archives that these lie in."""
    if not os.path.isdir(folder):
        return []
    seen = {os.path.realpath(file.rpartition("::")[2]) for file in opened}  # zip://notes.csv::archive.zip
    return [file for file in list_files(folder) if os.path.realpath(os.path.join(folder, file)) not in seen]


def left_out_note(files: Iterable[str]) -> tuple[str, ...]:
    """What is said of files in the folder that nobody reads."""
    files = list(files)
    if not files:
        return ()
    return (f"left out: {len(files):,} file{'s' * (len(files) > 1)} in the folder, {_named(files)}",)


def _named(files: Sequence[str]) -> str:
    return shortened(", ".join(files[:5]) + (", ..." if len(files) > 5 else ""), 300)
