"""The flags of the recipe clinical_classification: each rule refuses what breaks it."""

import math
from typing import Any

import pytest
from flags import Refused, check_refused, construct

from hf_accum.config.serialization import as_dict
from recipes.clinical_classification import ClinicalClassificationConfig

MULTI = "multi_label_classification"
AT_LEAST_1 = ("effective_batch_size", "shuffle_block_size", "log_every", "max_nonfinite_skips")
AT_LEAST_1_OR_NULL = ("max_steps", "num_epochs", "eval_every", "save_every", "early_stopping_patience")
TWO = {"labels": ["a", "b"]}
REFUSED: list[Refused] = [
    *(({"label_smoothing": value}, "label_smoothing", "in [0, 1)") for value in (-0.1, 1.0, math.nan)),
    ({"label_separator": ""}, "label_separator", "not empty"),
    ({"labels": ["a", "b", "a"]}, "labels", "all different"),
    ({"labels": ["a"]}, "labels", "at least 2 names"),
    ({"problem": MULTI, "class_weights": "balanced"}, "class_weights", f"none for {MULTI}"),
    ({"problem": "regression", "class_weights": "balanced"}, "class_weights", "none for regression"),
    ({"problem": MULTI, "label_smoothing": 0.1}, "label_smoothing", f"0 for {MULTI}"),
    ({"positive_weights": [1.0, 2.0]} | TWO, "positive_weights", "empty for single_label_classification"),
    ({"problem": "regression"} | TWO, "labels", "empty for regression"),
    ({"class_weights": [1.0, 2.0]}, "class_weights", "given together with `labels`"),
    ({"class_weights": []}, "class_weights", "given together with `labels`"),
    ({"class_weights": []} | TWO, "class_weights", "one for each of the 2 labels"),
    ({"class_weights": [1.0]} | TWO, "class_weights", "one for each of the 2 labels"),
    *(
        ({"class_weights": [1.0, value]} | TWO, "class_weights", "finite and above 0")
        for value in (0.0, -1.0, math.inf, math.nan)
    ),
    ({"tune_thresholds": True}, "tune_thresholds", "false for single_label_classification"),
    ({"problem": "regression", "tune_thresholds": True}, "tune_thresholds", "false for regression"),
    ({"problem": "regression", "temperature_scaling": True}, "temperature_scaling", "false for regression"),
    ({"problem": "regression", "baselines": True}, "baselines", "false for regression"),
    ({"max_eval_examples": 5, "baselines": True}, "baselines", "false with `max_eval_examples`"),
    ({"positive_weights": "balanced"}, "positive_weights", "empty for single_label_classification"),
    *(({"calibration_fraction": value}, "calibration_fraction", "between 0 and 1") for value in (0.0, 1.0)),
    ({"problem": MULTI, "positive_weights": [1.0]}, "positive_weights", "given together with `labels`"),
    ({"problem": MULTI, "positive_weights": [1.0]} | TWO, "positive_weights", "one for each of the 2 labels"),
    ({"problem": MULTI, "positive_weights": [1.0, 0.0]} | TWO, "positive_weights", "finite and above 0"),
]


@pytest.mark.parametrize("refused", REFUSED)
def test_each_rule_of_the_recipe_names_flag_value_and_itself(refused: Refused) -> None:
    values, flag, _ = refused
    shown = repr(values[flag]) if flag == "label_separator" else None
    check_refused(refused, ClinicalClassificationConfig, shown=shown)


@pytest.mark.parametrize(
    "values",
    [
        {},
        dict.fromkeys(AT_LEAST_1, 1),
        dict.fromkeys(AT_LEAST_1_OR_NULL, 1) | {"best_metric": "loss"},
        {"max_steps": 1, "num_epochs": None},
        {"max_length": 2, "weight_decay": 0.0, "dropout": 0.0},
        {"warmup_ratio": 0.0, "lora": {"rank": 0, "alpha": 0.1, "dropout": 0.0, "target_modules": ["q"]}},
        {"warmup_ratio": 1.0, "dropout": 0.99},
        {"class_weights": [0.5, 2.0], "label_smoothing": 0.5, "labels": ["a", "b"]},
        {"class_weights": "balanced"},
        {"problem": MULTI, "positive_weights": [0.5, 2.0], "labels": ["a", "b"]},
        {"problem": MULTI, "positive_weights": "balanced", "tune_thresholds": True, "temperature_scaling": True},
        {"temperature_scaling": True, "calibration_fraction": 0.2},
        {"problem": "regression", "eval_fraction": 0.01},
    ],
)
def test_what_keeps_to_the_rules_is_taken(values: dict[str, Any]) -> None:
    config = construct(ClinicalClassificationConfig, values)
    expected = as_dict(ClinicalClassificationConfig()) | values
    assert as_dict(config) == expected | {
        "lora": as_dict(ClinicalClassificationConfig())["lora"] | values.get("lora", {})
    }
