"""A dataset with a part that is held out: opened, and read once for what has to be known before training."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Self

import numpy as np

from hf_accum.config.datasets import Datasets, parts_of
from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.formats.rows import NoSuchColumn
from hf_accum.data.held_out import HeldOut, by_hash, by_rows, holds_out_all
from hf_accum.data.label_notes import notes_of_labels
from hf_accum.data.mixture import Mixture, joined, part_of
from hf_accum.data.same_columns import check_alike
from hf_accum.data.skipped_rows import MOST_SKIPPED_SHARE, check_share
from hf_accum.data.source import BadRow, Row, Source, open_source
from hf_accum.data.survey import SAMPLE_SIZE, Observed, Survey, hash_of_group, num_of_both, survey
from hf_accum.distributed.ranks import Ranks
from hf_accum.errors import UserError, shortened, shown
from hf_accum.seeding import derive_seed


@dataclass(frozen=True, kw_only=True)
class SplitData:
    """The dataset, and what one pass over it found (None where no pass was needed)."""

    source: Source
    eval_source: Source
    dataset: str | None = None
    """By its name, also one that a recipe brings."""
    group_column: str
    eval_fraction: float | None
    """None: there is a split of its own to evaluate on."""
    held_out: HeldOut = field(default_factory=HeldOut)
    """Of the rows of `source`."""
    split_by: str = ""
    """The dataset's own column by which it is split, for messages."""
    calibration_fraction: float = 0.0
    """The share of the other groups that is not trained on either, but kept to calibrate on."""
    num_train: int | None = None
    num_held_out: int | None = None
    num_calibration: int | None = None
    label_counts: Mapping[str, int] = field(default_factory=dict)
    """Of the rows to train on."""
    held_out_label_counts: Mapping[str, int] = field(default_factory=dict)
    bad_rows: Mapping[str, int] = field(default_factory=dict)
    digest: str | None = None
    """Of the content of all rows, of what of them is held out, and of how datasets are mixed."""
    mixture: Mixture | None = None
    """Of several datasets, which the sources join."""
    num_repeated: int = 0
    """Held-out examples whose text is also trained on."""
    sample: tuple[Row, ...] = ()
    """Some rows of both sides, the longest among them; all, where there are few."""
    max_skipped_share: float = MOST_SKIPPED_SHARE
    notes_of_files: tuple[str, ...] = ()
    """What the user should know of the files, and of what in them is not read."""

    @property
    def notes(self) -> list[str]:
        """What the user should know of it before the training."""
        return notes_of_split(self)

    def num_in_passes(self, num_epochs: int | None) -> int | Iterable[int] | None:
        """How many examples each pass has, or of a mixture each of so many passes; None: they were not counted."""
        if self.mixture is None or self.num_train is None or num_epochs is None:
            return self.num_train
        return self.mixture.pass_sizes(num_epochs)

    def notes_of_missing(self, what: str, names: Iterable[str]) -> list[str]:
        """Which of the names no row to train on has, as far as labels were counted."""
        missing = [name for name in names if name not in self.label_counts]
        return [f"{what} {shortened(', '.join(missing), 200)}"] if self.label_counts and missing else []

    def group_of(self, row: Row) -> int:
        """The hash of a row's group: rows of one group (a patient, a disease, equal texts) are all on one side.

        Raises:
            BadRow: if the row has no group.
        """
        value = row.get(self.group_column)
        if value in (None, ""):
            known = shortened(", ".join(map(str, row)), 300) or "none"
            raise BadRow(
                self.group_column, f"no group to split by (no such column, null, or empty); the row has {known}"
            )
        if isinstance(value, list | dict):
            raise BadRow(self.group_column, f"{shown(value)} is no single value to split by")
        return hash_of_group(value)

    def is_held_out(self, row: Row, of_eval_source: bool) -> bool:
        """Whether a row is not to train on.

        Raises:
            BadRow: if it has no group.
        """
        return of_eval_source if self.eval_fraction is None else self.group_of(row) in self.held_out

    def is_to_train_on(self, row: Row) -> bool:
        """Whether a row of `source` is neither held out nor kept to calibrate on."""
        return not (self.is_held_out(row, of_eval_source=False) or self.is_for_calibration(row, of_eval_source=False))

    def is_for_calibration(self, row: Row, of_eval_source: bool) -> bool:
        """Whether a row that is not held out is not to train on either: by a hash of its group."""
        if not self.calibration_fraction or of_eval_source:
            return False
        return self._calibrates(self.group_of(row))

    def _calibrates(self, group: int) -> bool:
        return derive_seed("to calibrate on", group) < self.calibration_fraction * 2**63

    def with_rows(self, change: Callable[[Source], Source], group_column: str | None = None) -> Self:
        """This, with the rows of both sources changed, and split by another column of these where one is given."""
        return replace(
            self,
            source=change(self.source),
            eval_source=change(self.eval_source),
            group_column=group_column or self.group_column,
        )

    def surveyed(
        self,
        observe: Callable[[Row], Observed],
        ranks: Ranks,
        on_bad_row: Literal["error", "skip"],
        sample_size: int = SAMPLE_SIZE,
    ) -> Self:
        """This, with what one pass over all of it finds, and split by that; each dataset of a mixture by itself, but
        that a group that is held out of one is of the others too. A collective.

        Raises:
            UserError: for the first bad row, unless they are skipped; if a side of the split has no usable row.
        """

        mixture = self.mixture

        def look(source: Source, shards: Sequence[range] | None, group_of: Callable[[Row], int]) -> list[Survey]:
            parts = [source] if shards is None else [part_of(source, of_part) for of_part in shards]
            return [survey(part, observe, group_of, ranks, on_bad_row, sample_size) for part in parts]

        held_out = self.held_out
        if self.eval_fraction is None:
            group_of = self.group_of if self.calibration_fraction else lambda _: 0
            of_train = look(self.source, mixture and mixture.shards, group_of)
            sizes = [one.num_rows for one in of_train]
            of_eval = look(self.eval_source, mixture and mixture.eval_shards, lambda _: 0)
            is_held_out = np.repeat([False, True], [sum(sizes), sum(one.num_rows for one in of_eval)])
            digest = derive_seed("split", *(one.digest for one in (*of_train, *of_eval)))
            found = _together([*of_train, *of_eval], sample_size)
        else:
            of_train = look(self.source, mixture and mixture.shards, self.group_of)
            sizes = [one.num_rows for one in of_train]
            held_out = _held_out_of(of_train, self.eval_fraction) or held_out
            digests = [one.digest for one in of_train]
            found = _together(of_train, sample_size)
            is_held_out = held_out.of(np.asarray(found.groups))
            groups = np.unique(np.asarray(found.groups)[is_held_out]).tolist()
            digest = derive_seed("split", repr(groups), *digests)
        to_train_on = ~is_held_out
        if self.calibration_fraction:
            groups = np.asarray(found.groups).tolist()
            to_train_on &= ~np.fromiter(map(self._calibrates, groups), dtype=bool, count=len(groups))
        check_share(found.num_rows + found.bad_rows.total(), found.bad_rows, self.max_skipped_share)
        num_train, num_held_out = int(to_train_on.sum()), int(is_held_out.sum())
        self._check_sides(found, num_train, num_held_out)
        num_calibration = found.num_rows - num_train - num_held_out
        if self.calibration_fraction and not num_calibration:
            raise UserError(
                f"`calibration_fraction` {self.calibration_fraction}: has to be more for so little data, of which no "
                "row is kept to calibrate on"
            )
        if mixture is not None and self.eval_fraction != 1:
            ends = np.cumsum(sizes)
            mixture = mixture.with_sizes([int(part.sum()) for part in np.split(to_train_on[: ends[-1]], ends[:-1])])
            digest = derive_seed(digest, str(mixture.weights))
        texts = np.asarray(found.texts)
        return replace(
            self,
            held_out=held_out,
            mixture=mixture,
            num_train=num_train,
            num_held_out=num_held_out,
            num_calibration=num_calibration,
            label_counts=found.labels_of(to_train_on),
            held_out_label_counts=found.labels_of(is_held_out),
            bad_rows=found.bad_rows,
            digest=f"{digest:016x}",
            num_repeated=num_of_both(texts[~is_held_out], texts[is_held_out]) if len(texts) else 0,
            sample=found.sampled,
            notes_of_files=(*self.notes_of_files, *_quoted_note(found)),
        )

    def _check_sides(self, found: Survey, num_train: int, num_held_out: int) -> None:
        if num_held_out and (num_train or self.eval_fraction == 1):
            return
        if self.eval_fraction == 1:
            raise UserError(f"the dataset has no usable row ({found.bad_rows.total()} bad rows)")
        if self.eval_fraction is not None and found.num_rows > 1:  # one group: two are on both sides
            raise UserError(
                f"column {self.split_by!r}, by which the rows are split, is the same in all {found.num_rows:,} rows: "
                "they are one group, which is either trained on or held out; name the column of a patient or a "
                "document by `group_column`, or give `eval_split`"
            )
        raise UserError(
            f"the dataset has {num_train} usable examples to train on and {num_held_out} held out "
            f"({found.bad_rows.total()} bad rows): both are needed; give more rows, `eval_split` or another "
            "`eval_fraction`"
        )


def _held_out_of(found: Sequence[Survey], fraction: float) -> HeldOut | None:
    """What is held out of each dataset by its own rows; None: there are no rows."""
    of_each = [(one, by_rows(one, fraction)) for one in found if one.num_rows]
    if len(found) == 1:
        return of_each[0][1] if of_each else None
    groups = [np.asarray(one.groups)[held_out.of(np.asarray(one.groups))] for one, held_out in of_each]
    return HeldOut(groups=frozenset(np.unique(np.concatenate(groups)).tolist())) if groups else None


def _together(found: Sequence[Survey], sample_size: int) -> Survey:
    first, *others = found
    for other in others:
        first.add(other, sample_size)
    return first


def _quoted_note(found: Survey) -> tuple[str, ...]:
    number = found.num_quoted_lines
    if not number:
        return ()
    are = "1 line of CSV lies" if number == 1 else f"{number:,} lines of CSV lie"
    return (
        f"{are} within quoted fields, of texts of several lines: they are no rows (if they are: `csv_quoting none`)",
    )


def open_split(
    dataset: Datasets,
    columns: Sequence[str],
    config: RecipeConfig,
    *,
    group_column: str,
    opener: Callable[..., Source] = open_source,
) -> SplitData:
    """Open a dataset, of which these columns are needed, and split it as the flags say; or several, joined. `opener`
    is one that opens more formats than `open_source`, as it does.

    Raises:
        UserError: for a dataset or column that cannot be used, and for datasets that do not go together.
    """
    parts = parts_of(dataset)
    how = {"config": config.dataset_config, "quoting": config.csv_quoting, "revision": config.dataset_revision}

    def opened(split: str) -> list[Source]:
        try:
            return [opener(part.location, split, columns=[*columns, group_column], **how) for part in parts]
        except NoSuchColumn as error:
            if error.column == group_column and group_column not in columns:
                raise UserError(
                    f"{error}; rows are grouped by it: another `group_column`, or null for none"
                ) from error
            if (flag := _flag_of(error.column, config)) is None:
                raise
            raise UserError(f"{error}; `{flag}` names another one") from error

    sources = opened(config.train_split)
    eval_sources = opened(config.eval_split) if config.eval_split else sources
    source, eval_source, mixture = sources[0], eval_sources[0], None
    if len(parts) > 1:
        check_alike(parts, sources, columns, None if config.eval_split else group_column)
        mixture = Mixture.of(parts, sources, eval_sources, config.mix_until)
        source = joined(mixture.names, sources)
        eval_source = joined(mixture.names, eval_sources) if config.eval_split else source
    notes = [*source.notes, *eval_source.notes]
    if unused := [split for split in sorted(source.splits) if split not in (config.train_split, config.eval_split)]:
        notes.append(f"splits of the dataset that are not used: {', '.join(unused)} (`eval_split` evaluates on one)")
    fraction = None if config.eval_split else 1.0 if holds_out_all() else config.eval_fraction
    return SplitData(
        source=source,
        eval_source=eval_source,
        dataset=config.dataset,
        mixture=mixture,
        group_column=group_column,
        eval_fraction=fraction,
        held_out=HeldOut() if fraction is None else by_hash(fraction),
        split_by=group_column,
        max_skipped_share=config.max_skipped_share,
        notes_of_files=tuple(dict.fromkeys(notes)),
    )


def _flag_of(column: str, config: RecipeConfig) -> str | None:
    """The flag that names a column, or whose default it is."""
    flags = {
        name: value for name, value in vars(config).items() if name.endswith("_column") and name != "group_column"
    }
    named = [name for name, value in flags.items() if column in ([value] if isinstance(value, str) else value or ())]
    return (named or [name for name in flags if name == f"{column}_column"] or [None])[0]


def notes_of_split(data: SplitData) -> list[str]:
    """How the rows were divided, as far as they were counted: the labels, the share, what is on both sides."""
    if data.num_train is None or data.num_held_out is None:
        return []
    notes: list[str] = []
    share, wanted = data.num_held_out / (data.num_train + data.num_held_out), data.eval_fraction
    if wanted is not None and abs(share - wanted) > wanted / 2:
        notes.append(
            f"{data.num_held_out:,} of {data.num_train + data.num_held_out:,} examples are held out, where "
            f"`eval_fraction` is {wanted:g}: groups are held out whole, at least one, and of each label at least one"
        )
    notes += notes_of_labels(data.label_counts, data.held_out_label_counts)
    if data.num_repeated:
        notes.append(
            f"{data.num_repeated:,} of the {data.num_held_out:,} held-out examples are trained on too (the same, "
            "capitals and spaces aside): the figures are better than they should be; leave them out of the data, or "
            "have them in one group (`group_column`)"
        )
    return notes
