"""Secrets: found wherever they stand, taken out whole; ordinary texts stay as they are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_accum.config.validation import holds_secret, without_secrets

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
