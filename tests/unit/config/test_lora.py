"""The flags of LoRA: each rule refuses what breaks it."""

import math

import pytest
from flags import Refused, check_refused

from hf_accum.config.lora import LoraConfig

REFUSED: list[Refused] = [
    ({"lora": {"rank": -1}}, "lora.rank", "at least 0 (0: full fine-tuning)"),
    ({"lora": {"rank": 10**6}}, "lora.rank", "at most 65,536"),
    ({"lora": {"rank": 2.5}}, "lora.rank", "a whole number"),
    *(({"lora": {"alpha": value}}, "lora.alpha", "above 0") for value in (0.0, -1.0, 1e7, math.inf, math.nan)),
    *(({"lora": {"dropout": value}}, "lora.dropout", "in [0, 1)") for value in (-0.1, 1.0, math.nan)),
    *(({"lora": {"target_modules": v}}, "lora.target_modules", "not empty") for v in ([], "")),
    *(({"lora": {"target_modules": v}}, "lora.target_modules", "names of modules, or") for v in ("[", "((", "*")),
]


@pytest.mark.parametrize("refused", REFUSED)
def test_each_rule_names_flag_value_and_itself(refused: Refused) -> None:
    check_refused(refused)


def test_what_keeps_to_the_rules_is_taken() -> None:
    assert LoraConfig(rank=0, alpha=0.1, dropout=0.0, target_modules=["q"]).target_modules == ["q"]
    assert LoraConfig(rank=65_536, alpha=1e6, dropout=0.99, target_modules=".*proj").alpha == 1e6
