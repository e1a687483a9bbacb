"""The flags of the data: each rule refuses what breaks it."""

import math

import pytest
from flags import Refused, check_refused

from hf_accum.config.recipe import RecipeConfig

REFUSED: list[Refused] = [
    *(({name: ""}, name, "left out, or not empty") for name in ("dataset", "dataset_revision", "group_column")),
    *(({name: ""}, name, "left out, or not empty") for name in ("train_split", "eval_split")),
    *(({"eval_fraction": value}, "eval_fraction", "between 0 and 1") for value in (0.0, 1.0, -0.5, 2, math.nan)),
    ({"eval_split": "train"}, "eval_split", "another one than `train_split`"),
    *(({"shuffle_block_size": value}, "shuffle_block_size", "at least 1") for value in (0, -3)),
    ({"max_length": 1}, "max_length", "at least 2"),
    *(({name: 10**10}, name, "at most 1,000,000,000") for name in ("shuffle_block_size", "max_length")),
]


@pytest.mark.parametrize("refused", REFUSED)
def test_each_rule_names_flag_value_and_itself(refused: Refused) -> None:
    check_refused(refused)


def test_what_keeps_to_the_rules_is_taken() -> None:
    config = RecipeConfig(max_length=2, shuffle_block_size=1, eval_fraction=0.01, group_column="g")
    assert (config.max_length, config.shuffle_block_size, config.eval_fraction) == (2, 1, 0.01)
    assert RecipeConfig(train_split="a", eval_split="b").eval_split == "b"
    assert RecipeConfig(max_length=10**9, shuffle_block_size=10**9).max_length == 10**9
