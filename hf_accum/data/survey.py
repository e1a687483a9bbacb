"""One pass over a dataset before training: how many examples, which labels, which rows are bad."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Literal

from hf_accum.data.source import BadRow, Row, Source, good_rows
from hf_accum.distributed.collectives import on_all_ranks
from hf_accum.distributed.ranks import Ranks
from hf_accum.errors import shown
from hf_accum.seeding import derive_seed


@dataclass
class Survey:
    """What was found. A row may have several labels, or none; they are counted for training apart."""

    num_train: int = 0
    num_held_out: int = 0
    train_labels: Counter[str] = field(default_factory=Counter)
    held_out_labels: Counter[str] = field(default_factory=Counter)
    bad_rows: Counter[str] = field(default_factory=Counter)
    digest: int = 0
    """Of 64 bits: of the content of all good rows, at their places."""

    def add(self, other: "Survey") -> None:
        """Take in what was found in another part of the dataset."""
        self.num_train += other.num_train
        self.num_held_out += other.num_held_out
        self.train_labels += other.train_labels
        self.held_out_labels += other.held_out_labels
        self.bad_rows += other.bad_rows
        self.digest = (self.digest + other.digest) % 2**64


def survey(
    source: Source,
    observe: Callable[[Row], tuple[bool, tuple[str, ...], object]],
    ranks: Ranks,
    on_bad_row: Literal["error", "skip"],
) -> Survey:
    """Read every row once, each rank its share of the shards, and keep none.

    `observe` tells of a row whether it is held out, its labels, and what of it counts as its content.

    Raises:
        UserError: for the first bad row, naming file, row and field, unless they are skipped.
    """

    def mine() -> Survey:
        found = Survey()
        for shard in range(ranks.index, source.num_shards, ranks.count):
            for row_number, (is_held_out, labels, content) in good_rows(
                source, shard, 0, observe, on_bad_row, found.bad_rows
            ):
                found.digest = (found.digest + derive_seed(shard, row_number, is_held_out, repr(content))) % 2**64
                if is_held_out:
                    found.num_held_out += 1
                    found.held_out_labels.update(labels)
                else:
                    found.num_train += 1
                    found.train_labels.update(labels)
        return found

    total = Survey()
    for part in on_all_ranks(ranks, mine):
        total.add(part)
    return total


def is_held_out(row: Row, group_column: str, fraction: float) -> bool:
    """Whether a row belongs to the held-out share: by a hash of its group's value, and of nothing else.

    So rows of one group (a patient, a disease, equal texts) are all on one side, and the split is the same on
    every machine, in every order and for every seed.

    Raises:
        BadRow: if the row has no group.
    """
    if row.get(group_column) in (None, ""):
        raise BadRow(group_column, "no group to split by (no such column, null, or empty)")
    if isinstance(row[group_column], list | dict):
        raise BadRow(group_column, f"{shown(row[group_column])} is no single value to split by")
    digest = blake2b(str(row[group_column]).encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64
