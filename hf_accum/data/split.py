"""A dataset with a part that is held out: opened, and read once for what has to be known before training."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Literal, Self

from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.source import BadRow, Row, Source, good_rows, open_source
from hf_accum.distributed.collectives import on_all_ranks
from hf_accum.distributed.ranks import Ranks
from hf_accum.errors import UserError, shortened, shown
from hf_accum.seeding import derive_seed

Observed = tuple[tuple[str, ...], object]
"""Of a row: its labels, and what of it counts as its content."""


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
        known = shortened(", ".join(map(str, row)), 300) or "none"
        raise BadRow(group_column, f"no group to split by (no such column, null, or empty); the row has {known}")
    if isinstance(row[group_column], list | dict):
        raise BadRow(group_column, f"{shown(row[group_column])} is no single value to split by")
    digest = blake2b(str(row[group_column]).encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


@dataclass(frozen=True, kw_only=True)
class SplitData:
    """The dataset, and what one pass over it found (None where no pass was needed)."""

    source: Source
    eval_source: Source
    group_column: str
    eval_fraction: float | None
    """None: there is a split of its own to evaluate on."""
    num_train: int | None = None
    num_held_out: int | None = None
    label_counts: Mapping[str, int] = field(default_factory=dict)
    """Of the rows to train on."""
    held_out_label_counts: Mapping[str, int] = field(default_factory=dict)
    bad_rows: Mapping[str, int] = field(default_factory=dict)
    digest: str | None = None
    """Of the content of all rows."""

    @property
    def notes(self) -> list[str]:
        """What the user should know of it before the training."""
        return []

    def notes_of_missing(self, what: str, names: Iterable[str], keys: Iterable[str] | None = None) -> list[str]:
        """Which of the names no row to train on has, as far as labels were counted, by their keys (the names too)."""
        names = tuple(names)
        missing = [name for name, key in zip(names, keys or names, strict=True) if key not in self.label_counts]
        return [f"{what} {shortened(', '.join(missing), 200)}"] if self.label_counts and missing else []

    def is_held_out(self, row: Row, of_eval_source: bool) -> bool:
        """Whether a row is not to train on."""
        if self.eval_fraction is None:
            return of_eval_source
        return is_held_out(row, self.group_column, self.eval_fraction)

    def with_rows(self, change: Callable[[Source], Source], group_column: str | None = None) -> Self:
        """This, with the rows of both sources changed, and split by another column of these where one is given."""
        return replace(
            self,
            source=change(self.source),
            eval_source=change(self.eval_source),
            group_column=group_column or self.group_column,
        )

    def surveyed(
        self, observe: Callable[[Row], Observed], ranks: Ranks, on_bad_row: Literal["error", "skip"]
    ) -> Self:
        """This, with what one pass over all of it finds. A collective.

        Raises:
            UserError: for the first bad row, unless they are skipped; if a side of the split has no usable row.
        """

        def one_side(of_eval_source: bool) -> Survey:
            def one(row: Row) -> tuple[bool, tuple[str, ...], object]:
                labels, content = observe(row)
                return self.is_held_out(row, of_eval_source), labels, content

            return survey(self.eval_source if of_eval_source else self.source, one, ranks, on_bad_row)

        found = one_side(of_eval_source=False)
        if self.eval_fraction is None:
            found.add(one_side(of_eval_source=True))
        if not found.num_train or not found.num_held_out:
            raise UserError(
                f"the dataset has {found.num_train} usable examples to train on and {found.num_held_out} held out "
                f"({found.bad_rows.total()} bad rows): both are needed; give more rows, `eval_split` or another "
                "`eval_fraction`"
            )
        return replace(
            self,
            num_train=found.num_train,
            num_held_out=found.num_held_out,
            label_counts=found.train_labels,
            held_out_label_counts=found.held_out_labels,
            bad_rows=found.bad_rows,
            digest=f"{found.digest:016x}",
        )


def open_split(
    dataset: str,
    columns: Sequence[str],
    config: RecipeConfig,
    *,
    group_column: str,
    opener: Callable[..., Source] = open_source,
) -> SplitData:
    """Open a dataset, of which these columns are needed, and split it as the flags say. `opener` is one that opens
    more formats than `open_source`, as it does.

    Raises:
        UserError: for a dataset or column that cannot be used.
    """
    columns = [*columns, *([] if config.eval_split else [group_column])]
    source = opener(dataset, config.train_split, columns=columns, revision=config.dataset_revision)
    eval_source = source
    if config.eval_split:
        eval_source = opener(dataset, config.eval_split, columns=columns, revision=config.dataset_revision)
    fraction = None if config.eval_split else config.eval_fraction
    return SplitData(source=source, eval_source=eval_source, group_column=group_column, eval_fraction=fraction)
