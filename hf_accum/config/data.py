"""The flags of the data: where it comes from, what is held out, how it is read."""

from dataclasses import dataclass, field
from typing import Literal

from jsonargparse.typing import ClosedUnitInterval, OpenUnitInterval

from hf_accum.config.datasets import parts_of
from hf_accum.config.validation import COUNT, COUNT_OR_NULL, LENGTH, number, require, require_not_empty

MixUntil = Literal["all_exhausted", "first_exhausted"]


@dataclass(frozen=True, kw_only=True)
class DataFlags:
    """Data."""

    dataset: str | None = None
    """Hub id, local folder or file (jsonl, csv, tsv, parquet, xlsx); default: the recipe's embedded one.
    Several with commas between are mixed, by weights (A:0.7,B:0.3) or by their sizes."""
    mix_until: MixUntil = "all_exhausted"
    """Of datasets with weights: a pass ends when each was seen once, or as soon as one was."""
    dataset_revision: str | None = None
    """Branch, tag or commit of the hub's dataset repository."""
    dataset_config: str | None = None
    """Configuration of a dataset that has several."""
    csv_quoting: Literal["auto", "standard", "backslash", "none"] = "auto"
    """Quotation marks in csv and tsv: around fields, and doubled (standard) or behind a backslash within them; none:
    characters like others; auto: found, and fields that swallow rows are an error."""
    train_split: str = "train"
    """Split of the dataset to train on."""
    eval_split: str | None = None
    """Split of the dataset to evaluate on; default: a held-out share of the training split."""
    eval_fraction: float = field(default=0.1, metadata=number((OpenUnitInterval, "between 0 and 1")))
    """The share that is held out, by whole groups, where there is no eval_split: of each label, if rows have some."""
    group_column: str | None = None
    """Rows with the same value here (a patient, a disease) are never on both sides of the held-out split, and are
    drawn together where figures get an interval; default: the recipe's own."""
    max_eval_examples: int | None = field(default=None, metadata=COUNT_OR_NULL)
    """Of the held-out rows a fixed sample of so many, the same at each evaluation; null: all."""
    max_length: int = field(default=512, metadata=LENGTH)
    """Tokens per example; longer ones are truncated, and counted."""
    shuffle_block_size: int = field(default=10_000, metadata=COUNT)
    """Examples that are shuffled, and held in memory, together; 1: in file order."""
    stream_split: Literal["examples", "shards"] = "examples"
    """Over ranks: each keeps its share of one common order, or reads its own files (for large data)."""
    on_bad_row: Literal["error", "skip"] = "error"
    """A row that cannot be used stops the run, or is left out and counted."""
    max_skipped_share: float = field(default=0.05, metadata=number((ClosedUnitInterval, "between 0 and 1, as 0.05")))
    """The most of all rows that are left out so; more of them stop the run."""


def check_data(config: DataFlags) -> None:
    """Check how the flags of the data go together."""
    require_not_empty(
        config, "dataset", "dataset_revision", "dataset_config", "train_split", "eval_split", "group_column"
    )
    parts = parts_of(config.dataset or "")
    require(
        config.stream_split == "examples" or parts[0].weight is None,
        "stream_split",
        config.stream_split,
        "examples where datasets have weights: which rank has which files would change their shares in a window",
    )
    require(
        config.eval_split != config.train_split,
        "eval_split",
        config.eval_split,
        "another one than `train_split`: figures on what was learned say nothing",
    )
