"""The flags of a run: each rule refuses what breaks it."""

import math

import pytest
from flags import Refused, check_refused

from hf_accum.config.recipe import RecipeConfig

COUNTS = ("log_every", "keep_checkpoints")
COUNTS_OR_NULL = ("eval_every", "save_every", "early_stopping_patience")
BEST = {"best_metric": "loss", "eval_every": 5}  # go with what needs them

REFUSED: list[Refused] = [
    *(({name: ""}, name, "left out, or not empty") for name in ("output_dir", "resume")),
    *(({name: value}, name, "at least 1") for name in COUNTS for value in (0, -3)),
    *((BEST | {name: value}, name, "at least 1, or null") for name in COUNTS_OR_NULL for value in (0, -1)),
    *((BEST | {name: 10**10}, name, "at most 1,000,000,000") for name in (*COUNTS, *COUNTS_OR_NULL)),
    *(
        ({name: value}, name, "a finite number above 0")
        for name in ("max_minutes", "rank_timeout_minutes")
        for value in (0.0, -1e-4, math.inf, math.nan)
    ),
    ({"rank_timeout_minutes": None}, "rank_timeout_minutes", "a number"),
    ({"early_stopping_patience": 2}, "early_stopping_patience", "null without best_metric"),
    ({"best_metric": "loss"}, "best_metric", "null without eval_every"),
]


@pytest.mark.parametrize("refused", REFUSED)
def test_each_rule_names_flag_value_and_itself(refused: Refused) -> None:
    check_refused(refused)


def test_what_keeps_to_the_rules_is_taken() -> None:
    config = RecipeConfig(**dict.fromkeys((*COUNTS, *COUNTS_OR_NULL), 1), best_metric="loss", max_minutes=0.1)
    assert (config.log_every, config.early_stopping_patience, config.max_minutes) == (1, 1, 0.1)
    assert RecipeConfig(save_every=None, max_minutes=None).save_every is None


@pytest.mark.parametrize("given", ["wandb,tensorboard", "[wandb, 'tensorboard']", " wandb , tensorboard ,"])
def test_names_may_have_commas_between(given: str) -> None:
    config = RecipeConfig(trackers=given, allow_changes=given)
    assert config.trackers == config.allow_changes == ["wandb", "tensorboard"]
