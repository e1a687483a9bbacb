"""The flags of the model: each rule refuses what breaks it, and nothing of a model is trusted by default."""

import math

import pytest
from flags import Refused, check_refused

from hf_accum.config.recipe import RecipeConfig
from hf_accum.config.trust import Trust

REFUSED: list[Refused] = [
    *(({name: ""}, name, "left out, or not empty") for name in ("model", "revision")),
    ({"code_revision": "", "trust_remote_code": True}, "code_revision", "left out, or not empty"),
    ({"code_revision": "main"}, "code_revision", "left out without `trust_remote_code`"),
    *(({"dropout": value}, "dropout", "in [0, 1)") for value in (-0.1, 1.0, math.nan)),
]


@pytest.mark.parametrize("refused", REFUSED)
def test_each_rule_names_flag_value_and_itself(refused: Refused) -> None:
    check_refused(refused)


@pytest.mark.parametrize("dropout", [None, 0.0, 0, 0.99])
def test_dropout_is_left_alone_or_a_probability(dropout: float | None) -> None:
    assert RecipeConfig(dropout=dropout).dropout == dropout


def test_a_model_is_not_trusted_by_default() -> None:
    assert RecipeConfig().trust == Trust(None, False, None, False)
    config = RecipeConfig(revision="abc", trust_remote_code=True, code_revision="def", allow_pickle_weights=True)
    assert config.trust == Trust("abc", True, "def", True)
