"""The flags of memory and speed: each rule refuses what breaks it."""

import math

import pytest
from flags import Refused, check_refused

from hf_accum.config.recipe import RecipeConfig

REFUSED: list[Refused] = [
    *(({"micro_batch_size": value}, "micro_batch_size", "auto, or at least 1") for value in (0, -3)),
    ({"micro_batch_size": 10**10}, "micro_batch_size", "at most 1,000,000,000"),
    *(({"micro_batch_size": value}, "micro_batch_size", "a whole number") for value in ("many", None, True, 1.5)),
    *(({"memory_budget": value}, "memory_budget", "auto, or bytes as 6GiB") for value in ("0", "6 apples", "-1GiB")),
    *(
        ({"max_probe_seconds": value}, "max_probe_seconds", "a finite number above 0")
        for value in (0.0, -1e-4, math.inf, math.nan)
    ),
]


@pytest.mark.parametrize("refused", REFUSED)
def test_each_rule_names_flag_value_and_itself(refused: Refused) -> None:
    check_refused(refused)


def test_what_keeps_to_the_rules_is_taken() -> None:
    config = RecipeConfig(micro_batch_size=1, memory_budget="500MB", max_probe_seconds=None)
    assert (config.micro_batch_size, config.memory_budget, config.max_probe_seconds) == (1, "500MB", None)
    assert RecipeConfig(micro_batch_size="auto", memory_budget=1, max_probe_seconds=1e-3).memory_budget == 1
