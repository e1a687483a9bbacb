"""Rules for the flags of classification: what goes together, and what contradicts."""

from types import SimpleNamespace
from typing import Any

import pytest

from hf_accum.errors import UserError
from hf_accum.tasks.flags import check_classification
from recipes.clinical_classification import ClinicalClassificationConfig


def config(**values: Any) -> Any:
    """The recipe's own, with values that it would refuse."""
    return SimpleNamespace(**vars(ClinicalClassificationConfig()) | values)


MULTI = "multi_label_classification"


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"labels": ["a", "b"], "class_weights": [1.0, 2.5]},
        {"class_weights": "balanced", "label_smoothing": 0.99},
        {"problem": MULTI, "labels": ["a", "b"], "positive_weights": [1.0, 2.0]},
        {"problem": "regression"},
        {"extra_metrics": ["m"], "trust_remote_code": True},
        {"labels": ["1=a", "2=b"], "label_column": ["a, or b"]},
        {"problem": MULTI, "label_column": ["a", "b"]},
        {"problem": MULTI, "label_column": ["a", "b"], "labels": ["A", "B"]},
        {"problem": MULTI, "label_format": "multi_hot", "labels": ["A", "B"]},
        {"label_format": "indices", "labels": ["A", "B"]},
    ],
)
def test_what_goes_together_is_taken(values: dict[str, Any]) -> None:
    check_classification(config(**values))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"label_smoothing": 1.0}, r"`label_smoothing` 1.0: has to be in \[0, 1\)"),
        ({"label_separator": ""}, "`label_separator` ''"),
        ({"text_column": ""}, "`text_column` '': has to be left out, or not empty"),
        ({"labels": ["a"]}, "`labels` .*at least 2 names"),
        ({"labels": ["a", "a"]}, "`labels` .*all different"),
        ({"extra_metrics": ["m"]}, "`extra_metrics` .*metrics of the hub are code"),
        ({"problem": MULTI, "class_weights": "balanced"}, "`class_weights` balanced: has to be none for multi_label"),
        ({"problem": MULTI, "label_smoothing": 0.1}, "`label_smoothing` 0.1: has to be 0 for multi_label"),
        ({"positive_weights": [1.0]}, "`positive_weights` .*empty for single_label"),
        ({"problem": "regression", "labels": ["a", "b"]}, "`labels` .*empty for regression"),
        ({"class_weights": [1.0, 2.0]}, "`class_weights` .*together with `labels`"),
        ({"labels": ["a", "b"], "class_weights": [1.0]}, "`class_weights` .*one for each of the 2 labels"),
        ({"labels": ["a", "b"], "class_weights": [1.0, 0.0]}, "`class_weights` .*finite and above 0"),
        ({"labels": ["a", "b"], "class_weights": [1.0, float("inf")]}, "`class_weights` .*finite and above 0"),
        ({"labels": ["1=a", "b"]}, "`labels` 1=a,b: has to be names, or a different number and name"),
        ({"label_column": ["a", "b"]}, "`label_column` .*one column for single_label"),
        ({"problem": "regression", "label_column": ["a", "b"]}, "`label_column` .*one column for regression"),
        ({"problem": MULTI, "label_column": ["a", "a"]}, "`label_column` .*different columns"),
        ({"problem": MULTI, "label_column": []}, "`label_column` .*one at least"),
        (
            {"problem": MULTI, "label_column": ["a", "b"], "labels": ["x", "y", "z"]},
            "`labels` .*a name for each of them",
        ),
        ({"label_format": "multi_hot"}, "`label_format` multi_hot: has to be another one"),
        ({"problem": "regression", "label_format": "names"}, "`label_format` names: has to be auto"),
        (
            {"problem": MULTI, "label_column": ["a", "b"], "label_format": "names"},
            "`label_format` names: has to be auto",
        ),
    ],
)
def test_what_contradicts_is_refused_by_flag_value_and_rule(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_classification(config(**values))


@pytest.mark.parametrize(
    ("values", "column"),
    [
        ({"text_column": "premise", "text_pair_column": "hypothesis"}, "premise"),
        ({"text_template": "{age}: {note}"}, "{age}: {note}"),
        ({"text_template": "{note}", "on_missing_text": "empty", "text_pair_column": "question"}, "{note}"),
    ],
)
def test_a_text_is_read_alone_with_another_or_by_a_template(values: dict[str, Any], column: str) -> None:
    assert ClinicalClassificationConfig(**values).read_column == column


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"text_pair_column": ""}, "`text_pair_column` '': has to be left out, or not empty"),
        ({"text_pair_column": "text"}, "`text_pair_column` text: has to be another column"),
        ({"text_pair_column": "b", "long_texts": "windows"}, "`text_pair_column` b: has to be left out with `long_t"),
        ({"text_template": "note"}, "`text_template` 'note': has to have a column's name in braces"),
        ({"text_template": "{a} {b"}, r"`text_template` '\{a\} \{b': .* at character 5 stands alone"),
        ({"text_template": "{a}", "text_column": "note"}, "`text_column` note: has to be left out with `text_temp"),
        ({"on_missing_text": "empty"}, "`on_missing_text` empty: has to be error without `text_template`"),
    ],
)
def test_texts_that_contradict_each_other(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        ClinicalClassificationConfig(**values)
