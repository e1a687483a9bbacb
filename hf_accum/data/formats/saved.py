"""Folders that `datasets` wrote by `save_to_disk`: Arrow files, and a description beside them."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_accum.data.formats.rows import BadRow, NoSuchColumn, Row
from hf_accum.errors import UserError, first_line

_STATE, _DICT = "state.json", "dataset_dict.json"
_BATCH = 1_000  # rows


@dataclass(frozen=True)
class SavedRows:
    """The rows of such a folder. `dataset` is a `datasets.Dataset`, of which pictures are not decoded."""

    dataset: Any
    files: tuple[str, ...]

    @property
    def features(self) -> Mapping[str, Any]:
        """The columns with their types."""
        return self.dataset.features

    def read(self, start: int) -> Iterator[tuple[int, Row | BadRow]]:
        """The rows from a number on."""
        for first in range(start, len(self.dataset), _BATCH):
            rows = self.dataset[first : min(first + _BATCH, len(self.dataset))].to_pylist()
            yield from enumerate(rows, first)


def saved_splits(folder: str) -> dict[str, str]:
    """The folders of the splits of a local folder; none if it is none of `save_to_disk`."""
    if os.path.isfile(os.path.join(folder, _STATE)) and os.path.isfile(os.path.join(folder, "dataset_info.json")):
        return {"train": folder}
    try:
        names = json.loads(Path(folder, _DICT).read_text(encoding="utf-8"))["splits"]
        return {str(name): os.path.join(folder, str(name)) for name in names}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def open_saved(folder: str, columns: Sequence[str]) -> SavedRows:
    """Open the folder of a split.

    Raises:
        UserError: if it cannot be read, lacks a column, or names files outside of it.
    """
    from datasets import load_from_disk

    try:
        state = json.loads(Path(folder, _STATE).read_text(encoding="utf-8"))
        names = [str(file["filename"]) for file in state["_data_files"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{folder}: its {_STATE} cannot be read ({first_line(error)})") from error
    files = tuple(os.path.join(folder, name) for name in names)
    root = Path(folder).resolve()
    for file in files:
        if not Path(file).resolve().is_relative_to(root):
            raise UserError(f"{folder}: its {_STATE} names a file outside of it, {file}")
    try:
        dataset: Any = load_from_disk(folder)
    except Exception as error:
        raise UserError(f"{folder}: cannot be read ({first_line(error)})") from error
    for column in columns:
        if column not in dataset.column_names:
            has = ", ".join(dataset.column_names)
            raise NoSuchColumn(f"{folder} has no column {column!r}: it has {has}", column)
    wanted = [name for name in columns if name in dataset.column_names] or dataset.column_names
    return SavedRows(dataset.select_columns(wanted).with_format("arrow"), files)
