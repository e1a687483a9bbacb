"""What the flags of tasks have to keep to, checked before anything heavy is loaded."""

import math
from typing import Any, Literal

from hf_accum.config.validation import require, require_not_empty
from hf_accum.tasks.label_codes import codes_of
from hf_accum.tasks.text_template import TextTemplate

Pooling = Literal["cls", "mean", "max"]
Problem = Literal["single_label_classification", "multi_label_classification", "regression"]
LabelFormat = Literal["auto", "names", "indices", "multi_hot"]
PositiveWeights = Literal["balanced"] | list[float]
ClassWeights = Literal["none", "balanced", "sqrt_balanced"] | list[float]


def check_classification(config: Any) -> None:
    """Check the flags of a classification of texts, which belong together by `problem` and `labels`.

    Raises:
        UserError: naming the flag, its value and the rule.
    """
    problem, labels = config.problem, config.labels
    single, multi = problem == "single_label_classification", problem == "multi_label_classification"
    columns, fmt = config.label_column, config.label_format
    require_not_empty(config, "text_column", "label_column")
    require(bool(config.label_separator), "label_separator", repr(config.label_separator), "not empty")
    code = bool(config.extra_metrics) and not config.trust_remote_code
    for holds, flag, rule in (
        (0 <= (config.label_smoothing or 0) < 1, "label_smoothing", "in [0, 1)"),
        (len(set(labels)) == len(labels), "labels", "all different"),
        (not code, "extra_metrics", "left out without `trust_remote_code`: metrics of the hub are code"),
        (len(labels) != 1, "labels", "at least 2 names"),
        (single or config.class_weights == "none", "class_weights", f"none for {problem}"),
        (single or not config.label_smoothing, "label_smoothing", f"0 for {problem}"),
        (multi or not config.positive_weights, "positive_weights", f"empty for {problem}"),
        (multi or not config.tune_thresholds, "tune_thresholds", f"false for {problem}"),
        (problem != "regression" or not config.temperature_scaling, "temperature_scaling", f"false for {problem}"),
        (problem != "regression" or not labels, "labels", "empty for regression"),
        (problem != "regression" or not config.baselines, "baselines", "false for regression"),
        (
            config.max_eval_examples is None or not config.baselines,
            "baselines",
            "false with `max_eval_examples`: they are compared on all held-out examples",
        ),
        (
            multi or isinstance(columns, str | None) or len(columns) == 1,
            "label_column",
            f"one column for {problem} (one with a comma in its name as a list of one); several are for many labels",
        ),
        (
            isinstance(columns, str | None) or len(columns) == len(set(columns)) > 0,
            "label_column",
            "different columns, one at least",
        ),
        (
            isinstance(columns, str | None) or len(columns) == 1 or len(labels) in (0, len(columns)),
            "labels",
            "left out with a column for each label, or a name for each of them",
        ),
        (multi or fmt != "multi_hot", "label_format", f"another one than multi_hot for {problem}"),
        (problem != "regression" or fmt == "auto", "label_format", "auto for regression"),
        (
            isinstance(columns, str | None) or len(columns) == 1 or fmt == "auto",
            "label_format",
            "auto with a column for each label",
        ),
    ):
        require(holds, flag, getattr(config, flag), rule)
    codes_of(labels)  # which has to be names, or names with numbers
    for flag in ("class_weights", "positive_weights"):
        weights = getattr(config, flag)
        if isinstance(weights, list) and (weights or flag == "class_weights"):
            require(bool(labels), flag, weights, "given together with `labels`, which says their order")
            require(len(weights) == len(labels), flag, weights, f"one for each of the {len(labels)} labels")
            require(all(w > 0 and math.isfinite(w) for w in weights), flag, weights, "finite and above 0")


def check_text_columns(config: Any) -> None:
    """Check the flags that say which text of a row is read: one, a pair, or a template of several.

    Raises:
        UserError: naming the flag, its value and the rule.
    """
    require_not_empty(config, "text_pair_column", "text_template")
    if config.text_template is not None:
        TextTemplate(config.text_template)
    for holds, flag, rule in (
        (
            config.text_pair_column is None or config.long_texts == "truncate",
            "text_pair_column",
            "left out with `long_texts windows`, which cut one text",
        ),
        (config.text_pair_column != config.read_column, "text_pair_column", "another column than the first text's"),
        (
            config.text_template is None or config.text_column == type(config).text_column,
            "text_column",
            "left out with `text_template`, which names the columns",
        ),
        (
            config.text_template is not None or config.on_missing_text == "error",
            "on_missing_text",
            "error without `text_template`: a row's only text has to be there",
        ),
    ):
        require(holds, flag, getattr(config, flag), rule)
