"""A dataset of texts with labels: opened, and read once for what has to be known before training."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from hf_accum.labels import LabelColumn, Problem, sorted_names
from hf_accum.ranks import Ranks
from hf_accum.source import Row, Source, open_source
from hf_accum.survey import Survey, is_held_out, survey
from hf_accum.text import text_of


@dataclass(frozen=True)
class LabelledTexts:
    """The dataset, and what one pass over it found (None where no pass was needed)."""

    source: Source
    eval_source: Source
    labels: LabelColumn
    group_column: str
    eval_fraction: float | None  # None: there is a split of its own to evaluate on
    num_train: int | None = None
    num_held_out: int | None = None
    label_counts: Mapping[str, int] = field(default_factory=dict)
    bad_rows: Mapping[str, int] = field(default_factory=dict)
    digest: str | None = None
    """Of the texts and labels of all rows."""

    @property
    def labels_without_rows(self) -> list[str]:
        """Labels that no row to train on has, as far as they were counted."""
        return [name for name in self.labels.names if name not in self.label_counts] if self.label_counts else []

    def is_held_out(self, row: Row, of_eval_source: bool) -> bool:
        """Whether a row is not to train on."""
        if self.eval_fraction is None:
            return of_eval_source
        return is_held_out(row, self.group_column, self.eval_fraction)


def open_labelled_texts(
    dataset: str,
    ranks: Ranks,
    *,
    text_column: str,
    label_column: str,
    group_column: str,
    problem: Problem,
    label_names: tuple[str, ...],
    label_separator: str,
    train_split: str,
    eval_split: str | None,
    eval_fraction: float,
    revision: str | None = None,
    on_bad_row: Literal["error", "skip"],
    needs_counts: bool,
    needs_size: bool,
) -> LabelledTexts:
    """Open the dataset and, where labels, their counts or its size are needed and not known, read it once.

    `revision` is one of the hub's repository.

    Raises:
        ValueError: for a dataset, column or row that cannot be used.
    """
    columns = [text_column, label_column] + ([] if eval_split else [group_column])
    source = open_source(dataset, train_split, columns=columns, revision=revision)
    eval_source = source
    if eval_split:
        eval_source = open_source(dataset, eval_split, columns=columns, revision=revision)
    class_names = source.class_names.get(label_column, ())
    names = label_names or class_names
    labels = LabelColumn(label_column, problem, names, label_separator, bool(class_names))
    data = LabelledTexts(source, eval_source, labels, group_column, None if eval_split else eval_fraction)
    needs_names = problem != "regression" and not names
    if not needs_size and not needs_names and not needs_counts:
        return data

    def observe(of_eval_source: bool) -> Survey:
        def one(row: Row) -> tuple[bool, tuple[str, ...], object]:
            text, keys = text_of(row, text_column), labels.keys(row)
            target = labels.encode(row) if problem == "regression" else keys
            return data.is_held_out(row, of_eval_source), keys, (text, target)

        return survey(data.eval_source if of_eval_source else data.source, one, ranks, on_bad_row)

    found = observe(of_eval_source=False)
    if eval_split:
        found.add(observe(of_eval_source=True))
    if not found.num_train or not found.num_held_out:
        raise ValueError(
            f"the dataset has {found.num_train} usable examples to train on and {found.num_held_out} held out "
            f"({found.bad_rows.total()} bad rows): both are needed; give more rows, --eval_split or another "
            "--eval_fraction"
        )
    if needs_names:
        names = sorted_names([*found.train_labels, *found.held_out_labels], label_column)
    return replace(
        data,
        labels=replace(labels, names=names),
        num_train=found.num_train,
        num_held_out=found.num_held_out,
        label_counts=found.train_labels,
        bad_rows=found.bad_rows,
        digest=f"{found.digest:016x}",
    )
