"""The flags of the optimization: each rule refuses what breaks it."""

import math

import pytest
from flags import Refused, check_refused

from hf_accum.config.recipe import RecipeConfig

COUNTS = ("effective_batch_size", "max_nonfinite_skips")
COUNTS_OR_NULL = ("max_steps", "num_epochs")

REFUSED: list[Refused] = [
    *(({name: value}, name, "at least 1") for name in COUNTS for value in (0, -3)),
    *(({name: value}, name, "at least 1, or null") for name in COUNTS_OR_NULL for value in (0, -1)),
    *(({name: 10**10}, name, "at most 1,000,000,000") for name in (*COUNTS, *COUNTS_OR_NULL)),
    ({"num_epochs": None}, "num_epochs", "a number where max_steps is null"),
    ({"learning_rate": 1e3}, "learning_rate", "at most 100"),
    ({"max_grad_norm": 1e-300}, "max_grad_norm", "at least 1e-12"),
    ({"weight_decay": 5000.0}, "weight_decay", "below 1 / learning_rate (3333.33"),
    *(
        ({name: value}, name, "a finite number above 0")
        for name in ("learning_rate", "max_grad_norm")
        for value in (0.0, -1e-4, math.inf, math.nan)
    ),
    *(({"weight_decay": v}, "weight_decay", "a finite number, at least 0") for v in (-0.1, math.inf, math.nan)),
    *(({"warmup_ratio": value}, "warmup_ratio", "in [0, 1]") for value in (-0.1, 1.1, math.nan)),
]


@pytest.mark.parametrize("refused", REFUSED)
def test_each_rule_names_flag_value_and_itself(refused: Refused) -> None:
    check_refused(refused)


def test_what_keeps_to_the_rules_is_taken() -> None:
    lowest = RecipeConfig(
        **dict.fromkeys((*COUNTS, *COUNTS_OR_NULL), 1),
        learning_rate=1e-300,
        max_grad_norm=1e-12,
        warmup_ratio=0.0,
        weight_decay=0.0,
    )
    assert (lowest.learning_rate, lowest.max_grad_norm, lowest.effective_batch_size) == (1e-300, 1e-12, 1)
    highest = RecipeConfig(
        **dict.fromkeys((*COUNTS, *COUNTS_OR_NULL), 10**9), learning_rate=100.0, weight_decay=0.009
    )
    assert (highest.learning_rate, highest.max_steps) == (100.0, 10**9)
    assert RecipeConfig(max_steps=1, num_epochs=None, warmup_ratio=1.0).num_epochs is None
