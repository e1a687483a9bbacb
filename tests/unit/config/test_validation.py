"""Checks of any flag: a message by the rule; numbers by their types; secrets are found, ordinary texts are not."""

import math
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse.typing import PositiveFloat

from hf_accum.config.recipe import RecipeConfig
from hf_accum.config.validation import (
    COUNT,
    COUNT_OR_AUTO,
    COUNT_OR_NULL,
    check_numbers,
    holds_secret,
    number,
    require,
    require_not_empty,
    without_secrets,
)
from hf_accum.errors import UserError
from recipes.clinical_classification import ClinicalClassificationConfig


def test_require_says_nothing_of_what_holds() -> None:
    require(True, "seed", 1, "anything")
    with pytest.raises(ValueError, match=r"^`seed` 1: has to be 2$"):
        require(False, "seed", 1, "2")


# Numbers


@dataclass(frozen=True)
class Numbers:
    """As flags are, of which annotations alone check nothing."""

    count: int = field(default=1, metadata=COUNT)
    count_or_null: int | None = field(default=None, metadata=COUNT_OR_NULL)
    count_or_auto: int | str = field(default="auto", metadata=COUNT_OR_AUTO)
    ratio: float = field(default=0.5, metadata=number((PositiveFloat, "above 0")))
    free: int = 0


@dataclass(frozen=True)
class OtherDefault(Numbers):
    count: int = 2
    free: int = field(default=3, metadata=COUNT)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"count": 0}, "`count` 0: has to be at least 1"),
        ({"count": 10**9 + 1}, "`count` 1000000001: has to be at most 1,000,000,000"),
        ({"count": 10**400}, f"`count` {10**400}: has to be at most 1,000,000,000"),
        ({"count": None}, "`count` None: has to be a whole number"),
        ({"count": "3"}, "`count` 3: has to be a whole number"),
        ({"count": 2.5}, "`count` 2.5: has to be a whole number"),
        ({"count": True}, "`count` True: has to be a whole number"),
        ({"count": "auto"}, "`count` auto: has to be a whole number"),
        ({"count_or_null": 0}, "`count_or_null` 0: has to be at least 1, or null"),
        ({"count_or_auto": 0}, "`count_or_auto` 0: has to be auto, or at least 1"),
        ({"count_or_auto": None}, "`count_or_auto` None: has to be a whole number"),
        ({"ratio": 0}, "`ratio` 0: has to be above 0"),
        ({"ratio": "0.5"}, "`ratio` 0.5: has to be a number"),
        ({"ratio": 10**400}, f"`ratio` {10**400}: has to be above 0"),
        *(({"ratio": value}, f"`ratio` {value}: has to be above 0") for value in (math.inf, -math.inf, math.nan)),
    ],
)
def test_a_number_is_checked_by_the_type_of_its_field(values: dict[str, Any], said: str) -> None:
    for config_class in (Numbers, OtherDefault):
        with pytest.raises(UserError) as refused:
            check_numbers(config_class(**values))
        assert str(refused.value) == said
    with pytest.raises(UserError) as refused:
        check_numbers(Numbers(**values), "lora.")
    assert str(refused.value) == said.replace("`", "`lora.", 1)


def test_numbers_that_keep_to_their_types_are_taken_as_they_are() -> None:
    config = Numbers(count=10**9, count_or_null=1, count_or_auto=7, ratio=1, free=-5)
    check_numbers(config)
    assert type(config.count) is int
    check_numbers(Numbers())
    check_numbers(OtherDefault())


def test_a_subclass_may_add_a_type_to_a_field() -> None:
    with pytest.raises(UserError, match=r"^`free` 0: has to be at least 1$"):
        check_numbers(OtherDefault(free=0))


# Texts


@pytest.mark.parametrize("value", ["a\0b", "\ud800"])
@pytest.mark.parametrize("flag", ["model", "output_dir", "text_column", "trackers", "labels"])
def test_texts_that_cannot_be_written_down_are_refused(flag: str, value: str) -> None:
    with pytest.raises(ValueError, match=rf"^`{flag}` '.*': has to be (UTF-8|without NUL characters)$"):
        ClinicalClassificationConfig(**{flag: [value, "b"] if flag in ("trackers", "labels") else value})  # type: ignore[arg-type]


@pytest.mark.parametrize("flag", ["model", "output_dir", "trackers", "allow_changes"])
def test_a_text_with_a_secret_is_refused_and_not_repeated(flag: str) -> None:
    with pytest.raises(UserError, match=rf"^`{flag}` \*\*\*: has to be without tokens and passwords") as refused:
        RecipeConfig(**{flag: [TOKEN] if flag in ("trackers", "allow_changes") else TOKEN})  # type: ignore[arg-type]
    assert TOKEN not in str(refused.value)


# Secrets

TOKEN = "hf_" + "aB3dE6gH9jK2mN5pQ8" * 2

SECRETS = {  # a text, and what of it nobody may see
    f"the token {TOKEN} was refused": TOKEN,
    f"https://{TOKEN}@huggingface.co/me/model": TOKEN,
    "https://ada:s3cr3t@example.org/notes.csv": "s3cr3t",
    "s3://key:p%40ss@bucket/notes": "p%40ss",
    "https://example.org/notes.csv?token=abc123&page=2": "abc123",
    "https://example.org/notes.csv?page=2&X-Amz-Signature=0f9e8d": "0f9e8d",
    "https://example.org/notes.csv?access_token=abc;api_key=def": "def",
    "https://example.org/?sig=a%2Fb%3D": "a%2Fb%3D",
    "Authorization: Bearer abcdefgh12345678": "abcdefgh12345678",
    "https://abcd1234token@example.org/notes.csv": "abcd1234token",
    "https://user:p@ss@example.org/notes.csv": "p@ss",
    "api_org_" + "Ab1" * 10: "Ab1" * 10,
}
ORDINARY = [
    "emilyalsentzer/Bio_ClinicalBERT",
    "runs/hf_notes/2026-11-26T12:30",
    "/data/hf_accum/tokens.jsonl",
    "https://example.org/notes.csv?page=2&split=train",
    "a@b.example: no password here",
    "token_type_ids",
    "risk-adjusted-mortality-of-the-elderly",
    "hf_hub_download",
    ".*(query|key|value)=.*",
]


@pytest.mark.parametrize("text", SECRETS)
def test_a_secret_is_found_and_taken_out(text: str) -> None:
    assert holds_secret(text)
    assert SECRETS[text] not in without_secrets(text)
    assert "***" in without_secrets(text)


@pytest.mark.parametrize("text", ORDINARY)
def test_an_ordinary_text_stays_as_it_is(text: str) -> None:
    assert not holds_secret(text)
    assert without_secrets(text) == text


@pytest.mark.parametrize("name", ["HF_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY"])
def test_a_secret_of_the_environment_is_known_by_its_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not holds_secret("is correct-horse known?")
    monkeypatch.setenv(name, "correct-horse")
    assert without_secrets("is correct-horse known?") == "is *** known?"


def test_a_short_value_of_the_environment_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or every such word would vanish from every message."""
    monkeypatch.setenv("HF_TOKEN", "on")
    assert without_secrets("on and on") == "on and on"


@given(before=st.text(), after=st.text())
def test_whatever_stands_around_it(before: str, after: str) -> None:
    assert TOKEN not in without_secrets(f"{before} {TOKEN} {after}")


def test_a_column_may_be_left_out_but_has_no_empty_name() -> None:
    require_not_empty(SimpleNamespace(group_column=None), "group_column")
    with pytest.raises(UserError, match="`group_column` ''"):
        require_not_empty(SimpleNamespace(group_column=""), "group_column")
