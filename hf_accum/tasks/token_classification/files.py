"""The files of annotated texts: BRAT folders and CoNLL files beside all that any dataset may be."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hf_accum.data.dataset_files import check_inside
from hf_accum.data.source import Source, of_files, open_source
from hf_accum.errors import UserError, shortened
from hf_accum.tasks.token_classification import brat, column_file
from hf_accum.tasks.token_classification.spans import SPAN_COLUMNS

_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "devel", "development"),
    "test": ("test", "testing", "eval"),
}
"""What files and folders of a split are called."""


@dataclass(frozen=True)
class Columns:
    """Where a row has its words and tags, or its text and entities (None: in the first of `SPAN_COLUMNS` it has)."""

    words: str
    tags: str
    text: str
    entities: str | None

    def open(
        self,
        dataset: str,
        split: str,
        *,
        columns: Sequence[str] = (),
        revision: str | None = None,
        config: str | None = None,
        **how: Any,
    ) -> Source:
        """Open a BRAT folder, CoNLL files (one, or a folder of them), or any other dataset, as `open_source` does.

        Raises:
            UserError: as `open_source` does; for a file of columns without a word and its tag.
        """
        texts, files = _brat_texts(dataset), _column_files(dataset)
        if not texts and not files:
            return open_source(dataset, split, columns=columns, revision=revision, config=config, **how)
        if config is not None:
            raise UserError(f"`dataset_config` {config}: has to be left out with {dataset}, which describes none")
        if revision is not None:
            raise UserError(f"`dataset_revision` {revision}: has to be left out with a local dataset ({dataset})")
        if texts:
            chosen, others = _of_split(dataset, split, texts)
            check_inside(dataset, [*chosen, *map(brat.annotations_of, chosen)])
            known = [*chosen, *others]
            notes = _left_out(dataset, [*known, *map(brat.annotations_of, known)])
            if unused := brat.unused_lines(chosen):
                kinds = ", ".join(f"{number:,} {kind}" for kind, number in sorted(unused.items()))
                notes = (*notes, f"lines of annotations that tell of no entities are not used: {kinds}")
            read = partial(brat.read_document, text=self.text, entities=self.entities or SPAN_COLUMNS[0])
            return of_files(chosen, read, {}, notes=notes, beside=brat.annotations_of)
        if files == [dataset]:
            chosen, others = files, []
        else:
            chosen, others = _of_split(dataset, split, files)
            check_inside(dataset, chosen)
        for file in chosen:
            try:
                column_file.check(file)
            except UserError as error:
                raise UserError(f"dataset {dataset!r}: {os.path.basename(file)}: {error}") from None
        read = partial(column_file.read_column_file, words=self.words, tags=self.tags)
        return of_files(chosen, read, {}, notes=_left_out(dataset, [*chosen, *others]))


def _with_suffix(folder: str, *suffixes: str) -> list[str]:
    """The files below a folder that end so, hidden ones apart; without an ending all."""
    paths = (Path(root, name) for root, _, names in os.walk(folder) for name in names if not name.startswith("."))
    return sorted(str(path) for path in paths if not suffixes or _suffix(str(path)) in suffixes)


def _suffix(file: str) -> str:
    stem, suffix = os.path.splitext(file)
    return (os.path.splitext(stem)[1] if suffix in _COMPRESSED else suffix).lower()


def _brat_texts(dataset: str) -> list[str]:
    """The texts of which there are annotations.

    Raises:
        UserError: if one is not there.
    """
    texts = [str(Path(file).with_suffix(".txt")) for file in _with_suffix(dataset, ".ann")]
    for text in texts:
        if not os.path.isfile(text):
            raise UserError(f"dataset {dataset!r}: no file {text}, of which there are annotations (.ann)")
    return texts


def _column_files(dataset: str) -> list[str]:
    """Those of a dataset; tsv and txt files of a folder, and a tsv file, where their first line is a word and its
    tag.
    """
    if os.path.isfile(dataset):
        is_one = _suffix(dataset) in column_file.SUFFIXES
        return [dataset] if is_one or (_suffix(dataset) == ".tsv" and column_file.is_column_file(dataset)) else []
    files = [file for file in _with_suffix(dataset, *column_file.SUFFIXES) if _suffix(file) != ".txt"]
    return files or [file for file in _with_suffix(dataset, ".tsv", ".txt") if column_file.is_column_file(file)]


def _of_split(dataset: str, split: str, files: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files of a split, by the names of files or folders, and those of others; all of them where no name is that
    of a split.
    """
    named = {file: name for file in files if (name := _split_of(os.path.relpath(file, dataset)))}
    if not named:
        if split != "train":
            raise UserError(f"dataset {dataset!r} has no split {split!r}: no file or folder of it has such a name")
        return list(files), []
    wanted = next((name for name, words in _SPLITS.items() if split in words), split)
    chosen = [file for file in named if named[file] == wanted]
    if not chosen:
        raise UserError(
            f"dataset {dataset!r} has no split {split!r}: it has {', '.join(sorted(set(named.values())))}"
        )
    return chosen, [file for file in named if named[file] != wanted]


def _split_of(path: str) -> str | None:
    parts = {part.lower() for part in (*Path(path).parent.parts, Path(path).name.partition(".")[0])}
    return next((name for name, words in _SPLITS.items() if parts & set(words)), None)


def _left_out(dataset: str, known: Iterable[str]) -> tuple[str, ...]:
    """A note of the files of a folder that are neither read nor of another split."""
    left = [os.path.relpath(file, dataset) for file in _with_suffix(dataset) if file not in set(known)]
    return (f"{len(left):,} files of the dataset are not read: {shortened(', '.join(left), 200)}",) if left else ()
