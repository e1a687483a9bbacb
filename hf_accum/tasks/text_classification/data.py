"""A dataset of texts with labels: opened, and read once for what has to be known before training."""

from dataclasses import dataclass, replace

from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.source import Row
from hf_accum.data.split import SplitData, open_split
from hf_accum.data.survey import Observed
from hf_accum.distributed.ranks import Ranks
from hf_accum.tasks.labels import LabelColumn, Problem, sorted_names
from hf_accum.tasks.tokenization import text_of


@dataclass(frozen=True, kw_only=True)
class LabelledTexts(SplitData):
    """The dataset with its labels."""

    labels: LabelColumn

    @property
    def notes(self) -> list[str]:
        """Labels that no row to train on has, as far as they were counted."""
        return [*super().notes, *self.notes_of_missing("no row to train on has the label", self.labels.names)]


def open_labelled_texts(
    dataset: str,
    ranks: Ranks,
    config: RecipeConfig,
    *,
    text_column: str,
    label_column: str,
    group_column: str,
    problem: Problem,
    label_names: tuple[str, ...],
    label_separator: str,
    needs_counts: bool,
) -> LabelledTexts:
    """Open the dataset and, where labels, their counts or its size are needed and not known, read it once.

    Raises:
        UserError: for a dataset, column or row that cannot be used.
    """
    opened = open_split(dataset, [text_column, label_column], config, group_column=group_column)
    class_names = opened.source.class_names.get(label_column, ())
    names = label_names or class_names
    labels = LabelColumn(label_column, problem, names, label_separator, class_names)
    data = LabelledTexts(labels=labels, **vars(opened))
    needs_names = problem != "regression" and not names
    if config.num_epochs is None and not needs_names and not needs_counts:
        return data

    def observe(row: Row) -> Observed:
        text, keys = text_of(row, text_column), labels.keys(row)
        return Observed(keys, (text, labels.encode(row) if problem == "regression" else keys), text)

    data = data.surveyed(observe, ranks, config.on_bad_row)
    if needs_names:
        names = sorted_names([*data.label_counts, *data.held_out_label_counts], label_column)
    return replace(data, labels=replace(labels, names=names))
