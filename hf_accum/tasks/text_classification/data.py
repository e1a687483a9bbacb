"""A dataset of texts with labels: opened, and read once for what has to be known before training."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from hf_accum.config.datasets import Datasets
from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.source import Row
from hf_accum.data.split import SplitData, open_split
from hf_accum.data.survey import Observed
from hf_accum.distributed.ranks import Ranks
from hf_accum.errors import UserError, shortened
from hf_accum.tasks.label_codes import codes_of
from hf_accum.tasks.label_columns import join_labels, joined_name
from hf_accum.tasks.labels import LabelColumn, LabelFormat, Problem, found_names, names_of_classes
from hf_accum.tasks.text_classification.pairs import texts_of
from hf_accum.tasks.text_template import TextTemplate, with_texts

_MOST_KEPT = 20  # labels with spaces


@dataclass(frozen=True, kw_only=True)
class LabelledTexts(SplitData):
    """The dataset with its labels."""

    labels: LabelColumn
    with_spaces: Counter[str] = field(default_factory=Counter)
    """Labels that are read without the spaces around them: some of them as they stand, and how often."""
    num_empty: Mapping[str, int] = field(default_factory=dict)
    """Of columns of the template: the rows that have nothing there."""

    @property
    def notes(self) -> list[str]:
        """Also labels that no row to train on has, and those that are not read as they stand, as far as is known."""
        notes = [
            *super().notes,
            *self.labels.notes,
            *self.notes_of_missing("no row to train on has the label", self.labels.names),
        ]
        if self.num_train is None:
            share = (
                ""
                if self.eval_fraction is None
                else ", rows are held out by a hash of their group, whatever they have"
            )
            notes.append(
                f"the rows were not read before (`num_epochs null`): labels and lengths were not counted{share}"
            )
        if self.with_spaces:
            some = shortened(", ".join(map(repr, sorted(self.with_spaces))), 200)
            notes.append(f"{self.with_spaces.total():,} labels have spaces around them, and are read without: {some}")
        for column, number in self.num_empty.items():
            notes.append(f"{number:,} rows have nothing in the column {column!r}: the template is left empty there")
        return notes


def open_labelled_texts(
    dataset: Datasets,
    ranks: Ranks,
    config: RecipeConfig,
    *,
    text_column: str,
    label_column: str | Sequence[str],
    group_column: str,
    problem: Problem,
    label_names: tuple[str, ...],
    earlier_labels: tuple[str, ...] = (),
    label_separator: str,
    needs_counts: bool,
    label_format: LabelFormat = "auto",
    calibration_fraction: float = 0.0,
    pair_column: str | None = None,
    template: TextTemplate | None = None,
) -> LabelledTexts:
    """Open the dataset and, where labels, their counts or its size are needed and not known, read it once.

    `label_names` may have codes (1=immediate). The `earlier_labels` of a run that this one starts from keep their
    places, with their codes, and those that are new in the data come behind them. Several label columns are one for
    each label. A second text stands in `pair_column`. What a `template` makes of a row stands in the column of its
    name: that is `text_column` then.

    Raises:
        UserError: for a dataset, column or row that cannot be used.
    """
    columns = [label_column] if isinstance(label_column, str) else list(label_column)
    text_columns = [text_column] if template is None else list(template.columns)
    needed = [*text_columns, *([] if pair_column is None else [pair_column]), *columns]
    if template is None:
        opened = open_split(dataset, needed, config, group_column=group_column)
    else:
        own_group = text_columns[0] if group_column == text_column else group_column
        opened = open_split(dataset, needed, config, group_column=own_group)
        opened = opened.with_rows(lambda source: with_texts(source, template), group_column)
    opened = replace(opened, calibration_fraction=calibration_fraction)
    if len(columns) > 1:
        label_names, before = label_names or tuple(columns), ()
        opened = opened.with_rows(lambda source: join_labels(source, columns, label_names))
        labels = LabelColumn(joined_name(columns), problem, label_names, label_format="names")
    else:
        class_names = opened.source.class_names.get(columns[0], ())
        before, their_codes = codes_of(earlier_labels)
        names, codes = codes_of(label_names or (earlier_labels if their_codes else ()))
        labels = LabelColumn(
            columns[0],
            problem,
            names or names_of_classes(class_names, before, columns[0]),
            label_separator,
            class_names,
            codes,
            label_format,
        )
    if label_format in ("indices", "multi_hot") and not labels.names:
        raise UserError(
            f"`label_format` {label_format}: has to go with the names of the labels, in order (`labels`): column "
            f"{labels.column!r} has none"
        )
    data = LabelledTexts(labels=labels, **vars(opened))
    needs_names = problem != "regression" and not labels.names
    if config.num_epochs is None and not needs_names and not needs_counts:
        return data
    with_spaces, empty = Counter[str](), Counter[str]()

    def observe(row: Row) -> Observed:
        text, keys = texts_of(row, text_column, pair_column), labels.keys(row)
        empty.update(() if template is None else template.empty_in(row))
        for label in labels.with_spaces(row) if keys else ():
            with_spaces[label if label in with_spaces or len(with_spaces) < _MOST_KEPT else "..."] += 1
        content = text, labels.encode(row) if problem == "regression" else keys
        return Observed(keys, content, text if isinstance(text, str) else "\n".join(text))

    data = data.surveyed(observe, ranks, config.on_bad_row)
    if needs_names:
        names = found_names([*data.label_counts, *data.held_out_label_counts], before, labels.column)
        data = replace(data, labels=replace(labels, names=names))
    return replace(
        data,
        with_spaces=sum(ranks.gather_objects(with_spaces), start=Counter()),
        num_empty=sum(ranks.gather_objects(empty), start=Counter()),
    )
