"""The flags of a classification of texts: what is read of a row, which labels there are, and how they weigh."""

from dataclasses import dataclass, field

from jsonargparse.typing import OpenUnitInterval

from hf_accum.config.validation import number
from hf_accum.tasks.flags import ClassWeights, LabelFormat, PositiveWeights, Problem
from hf_accum.tasks.text_template import OnMissingText, TextTemplate


@dataclass(frozen=True, kw_only=True)
class TextFlags:
    """Texts."""

    text_column: str = "text"
    """Column with the text."""
    text_pair_column: str | None = None
    """Column with a second text, which is read together with the first: a premise and its hypothesis, say."""
    text_template: str | None = None
    """A text of several columns, in the place of text_column: 'Age {age}: {note}', each column's name in braces."""
    on_missing_text: OnMissingText = "error"
    """A row without a value for the template is a bad row, or has nothing there (empty)."""

    @property
    def template(self) -> TextTemplate | None:
        """By which a row's text is written."""
        return None if self.text_template is None else TextTemplate(self.text_template, self.on_missing_text)

    @property
    def read_column(self) -> str:
        """Where a row's text stands in the end: what a template writes has a column of that name."""
        return self.text_template or self.text_column


@dataclass(frozen=True, kw_only=True)
class LabelFlags:
    """Labels of texts."""

    problem: Problem = "single_label_classification"
    """One class for each text, any number of labels, or a number."""
    labels: list[str] | str = field(default_factory=list)
    """Names of the labels, in order (a list, or with commas between); default: those in the data, sorted. Where the
    data has numbers for them, with these: 1=immediate,2=urgent."""
    label_format: LabelFormat = "auto"
    """What numbers in the label column mean: names, indices from 0 on, or a 0 or 1 for each label; auto: as they can
    be read in one way only."""
    label_separator: str = "|"
    """Between the labels of one text, where they are one string (multi_label_classification)."""
    class_weights: ClassWeights = "none"
    """Weight of each class in the loss: balanced is n / (classes * n of the class), sqrt_balanced its square
    root, or a number for each label in order (single_label_classification)."""
    positive_weights: PositiveWeights = field(default_factory=list)
    """What the loss of a present label is multiplied by, a number for each label, or balanced: texts without it
    divided by those with it (multi_label_classification)."""
    label_smoothing: float | None = None
    """Share of the target spread evenly over the classes (single_label_classification); null: 0, or what belongs to
    an embedded dataset."""
    tune_thresholds: bool = False
    """For each label the probability from which on it counts as predicted is the one of the best F1 on a part that
    is not trained on; false: 0.5 (multi_label_classification)."""
    temperature_scaling: bool = False
    """Probabilities are made to say how often one is right, by one number that is fitted on that part."""
    calibration_fraction: float = field(default=0.1, metadata=number((OpenUnitInterval, "between 0 and 1")))
    """The share of the groups to train on that is kept as that part, where one of the two asks for it."""
    extra_metrics: list[str] | str = field(default_factory=list)
    """Metrics of the hub beside the shipped ones, by name. They are code, and need trust_remote_code."""

    @property
    def calibrates(self) -> bool:
        """Whether a part of the data is kept for that."""
        return self.tune_thresholds or self.temperature_scaling
