"""What a run that is through predicts of the rows of a file: opened for a command."""

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp
from types import ModuleType
from typing import Any

from hf_accum.cli.handed_over import opened
from hf_accum.cli.made_up_rows import with_made_up_rows
from hf_accum.config.recipe import RecipeConfig
from hf_accum.config.serialization import as_dict, flattened
from hf_accum.data.dataset_files import stamp_of
from hf_accum.data.embedded import PREFIX
from hf_accum.data.formats.opening import suffix_of
from hf_accum.data.formats.row_files import format_of
from hf_accum.data.source import Source, open_source
from hf_accum.distributed.collectives import on_rank_0
from hf_accum.distributed.ranks import Ranks
from hf_accum.errors import UserError
from hf_accum.files import why_not_written
from hf_accum.models.lora import fold_adapters
from hf_accum.models.onednn import use_onednn_where_faster
from hf_accum.models.precision import compute_in
from hf_accum.run.finished import cutter_for, ready
from hf_accum.run.result import check_through
from hf_accum.run.row_predictions import RowModel

STDIN = "-"
_FREE = frozenset(
    [
        *("output_dir", "micro_batch_size", "memory_budget", "max_probe_seconds", "debug", "rank_timeout_minutes"),
        *("on_bad_row", "max_skipped_share"),
    ]
)
"""Flags by which no prediction becomes another one."""
_PIECE = 1 << 20
_PIPED = "pipe rows into it (JSON lines, CSV or Parquet)"
_PACKED = (b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
"""What gzip, zip (and Excel), bzip2, xz and zstd begin with."""


@dataclass(frozen=True)
class OpenedModel:
    """A run's model, loaded, and what it tells of rows."""

    ranks: Ranks
    rows: RowModel[Any]
    task: Any


@contextmanager
def open_predictions(
    module: ModuleType, folder: Path, config: RecipeConfig, *, to_compute: bool = True, **how: Any
) -> Iterator[OpenedModel]:
    """Load the run in `folder`, made by a recipe's module, to predict rows of the flags' columns; it needs no data.

    Unless it is there `to_compute`, the model's layers stay as transformers makes them. `how` goes to the recipe's
    function `predictor(config, task)`. A collective.

    Raises:
        UserError: if the run is not through, its recipe predicts nothing, or its labels are not those of the flags.
    """
    result = check_through(folder)
    make = getattr(module, "predictor", None)
    if make is None:
        raise UserError(
            f"{module.__name__}: predicts nothing of rows, as it has no function `predictor(config, task)`; its "
            "model is loaded by the lines of the README.md beside it, or trained further as the `model` of a recipe"
        )
    with with_made_up_rows(for_made_up_rows(config)) as made_up, opened(module, made_up) as handed:
        started = handed.run
        task, model = ready(result, handed.task, handed.spec, handed.processor, handed.config, started)
        predictor = make(config, task, **how)
        cutter = cutter_for(task, model, handed.config, started, writes=predictor.writes)
        model = fold_adapters(model)
        if to_compute:
            compute_in(model, started.precision)
        if to_compute and started.precision == "no" and not config.full_determinism:
            use_onednn_where_faster(model)
        rows = RowModel(model, predictor, cutter.for_forwards())
        yield OpenedModel(started.ranks, rows, task)


def for_made_up_rows(config: RecipeConfig) -> RecipeConfig:
    """The flags with what made-up rows can be read by: of a language model plain texts, which are never too long."""
    of_recipes: dict[str, Any] = {"class_weights": "none", "positive_weights": [], "num_samples": 0}
    if hasattr(config, "messages_column"):
        columns = ("prompt_column", "response_column", "input_column", "messages_column")
        of_recipes |= dict.fromkeys(columns) | {"text_column": "text"}
    changes: dict[str, Any] = {name: value for name, value in of_recipes.items() if hasattr(config, name)}
    return replace(config, **changes)


@dataclass(frozen=True)
class Rows:
    """Rows to predict; what tells whether they are the same ones; and about how many there are, if that is known."""

    source: Source
    stamp: Any
    num_rows: int | None


def open_early(config: RecipeConfig, dataset: str) -> Source | None:
    """Local rows, before the model is loaded, so that a mistake in their name is told at once; None of others.

    Raises:
        UserError: if they cannot be opened; for embedded data.
    """
    if dataset.startswith(PREFIX):
        raise UserError(
            f"`dataset` {dataset}: has to be a file, a folder, an id of the hub, or - for standard input; embedded "
            "data has labels, on which `hf-accum evaluate` looks at the run"
        )
    is_local = dataset != STDIN and (os.path.exists(dataset) or format_of(dataset) is not None)
    return _open(config, dataset) if is_local else None


def _open(config: RecipeConfig, dataset: str) -> Source:
    how = {"revision": config.dataset_revision, "config": config.dataset_config, "quoting": config.csv_quoting}
    return open_source(dataset, config.train_split, labelled=False, **how)


@contextmanager
def open_rows_of(config: RecipeConfig, dataset: str, ranks: Ranks, source: Source | None = None) -> Iterator[Rows]:
    """The rows of a file, a folder, a dataset of the hub, or of standard input (`-`), which is kept in a file.

    `source` is what `open_early` has opened of them. A collective.

    Raises:
        UserError: if there are none.
    """
    with ExitStack() as stack:
        stamp: Any = None
        if dataset == STDIN:
            dataset, stamp = on_rank_0(ranks, _keep_stdin)
            if ranks.index == 0:
                stack.callback(shutil.rmtree, os.path.dirname(dataset), ignore_errors=True)
        yield Rows(source or _open(config, dataset), stamp or _stamps(dataset), _about_how_many(dataset))


def _keep_stdin() -> tuple[str, str]:
    """A file with what comes by standard input, of the format that it begins as, and its digest."""
    if sys.stdin is None:  # closed by who started this process
        raise UserError(f"`dataset` -: standard input is closed: {_PIPED}")
    raw, digest = sys.stdin.buffer, hashlib.blake2b(digest_size=16)
    head = raw.read(_PIECE)
    if not head.strip():
        raise UserError(f"`dataset` -: nothing came by standard input: {_PIPED}")
    if head.startswith(_PACKED):
        raise UserError("`dataset` -: is compressed, or of Excel: unpack it before (JSON lines, CSV or Parquet)")
    begins = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    suffix = ".parquet" if begins[:4] == b"PAR1" else ".jsonl" if begins[:1] in (b"{", b"[") else ".csv"
    folder = Path(mkdtemp(prefix="hf-accum-stdin-"))
    try:
        file = folder / f"stdin{suffix}"
        with file.open("wb") as kept:
            while head:
                digest.update(head)
                kept.write(head)
                head = raw.read(_PIECE)
    except BaseException as error:  # an interrupt too: it may hold texts of patients
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise UserError(
                f"`dataset` -: standard input is kept in a file meanwhile, and cannot be in {folder.parent} "
                f"({why_not_written(folder, error)}); the variable TMPDIR names another folder, and a file as "
                "`dataset` needs none"
            ) from error
        raise
    return str(file), digest.hexdigest()


def _stamps(dataset: str) -> list[tuple[str, int, int]]:
    """The names, sizes and times of change of local files; of others none."""
    path = Path(dataset)
    if not path.exists():
        return []
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    stamps = [(file, stamp_of(str(file))) for file in files]
    return [(str(file.relative_to(path.parent)), s.num_bytes, s.changed_ns) for file, s in stamps if s is not None]


def _about_how_many(dataset: str) -> int | None:
    """The rows of a local file that is not compressed, by its lines, or as it says itself."""
    path = Path(dataset)
    if not path.is_file() or suffix_of(dataset) != path.suffix.lower():
        return None
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return int(pq.ParquetFile(path).metadata.num_rows)
    if path.suffix not in (".jsonl", ".ndjson", ".csv", ".tsv"):
        return None
    with path.open("rb") as file:
        lines = sum(piece.count(b"\n") for piece in iter(lambda: file.read(_PIECE), b""))
    return lines - (path.suffix in (".csv", ".tsv"))


def facts_of(config: RecipeConfig, folder: Path, rows: Rows, **how: Any) -> dict[str, Any]:
    """What decides what the rows of an output are."""
    flags = {name: value for name, value in flattened(as_dict(config)).items() if name not in _FREE}
    of_files = {"the run's weights": _stamps(str(check_through(folder))), "the dataset's files": rows.stamp}
    return {**of_files, **how, **flags}
