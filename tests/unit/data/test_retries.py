"""Rows over a network that fails: each comes once, in order, or the error does."""

import importlib
import logging
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from huggingface_hub import errors
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_accum.data import retries, source
from hf_accum.data.retries import is_transient, retried

httpx = importlib.import_module(errors.HfHubHTTPError.__mro__[1].__module__.partition(".")[0])  # httpx or httpx2
REQUEST = httpx.Request("GET", "https://hub.example/notes.jsonl")


def answer(status: int, kind: Any = HfHubHTTPError) -> Exception:
    return kind("no", response=httpx.Response(status, request=REQUEST))


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds: list[float] = []
    monkeypatch.setattr(retries.time, "sleep", seconds.append)
    return seconds


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(failures=st.dictionaries(st.integers(0, 12), st.integers(1, 4)), start=st.integers(0, 10))
def test_each_row_comes_once_whatever_fails_between(slept: list[float], failures: dict[int, int], start: int) -> None:
    left = dict(failures)

    def read(following: int) -> Iterator[tuple[int, str]]:
        for number in range(following, 13):
            if left.get(number):
                left[number] -= 1
                raise ConnectionResetError("gone")
            if number < 12:
                yield number, f"row {number}"

    assert list(retried("notes", read, start)) == [(n, f"row {n}") for n in range(start, 12)]


def test_it_gives_up_after_its_pauses_and_says_each(slept: list[float], caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def read(following: int) -> Iterator[tuple[int, str]]:
        calls.append(following)
        if following == 0:
            yield 0, "row"
        raise answer(503)

    rows = retried("notes.jsonl", read, 0)
    assert next(rows) == (0, "row")
    with caplog.at_level(logging.WARNING), pytest.raises(HfHubHTTPError):
        next(rows)
    assert calls == [0, 1, 1, 1, 1]
    assert slept == [1, 4, 15, 60]
    assert "notes.jsonl: cannot be read after row 1" in caplog.text
    assert "tried again in 60 s" in caplog.text


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (httpx.ReadTimeout("slow"), True),
        (aiohttp.ServerDisconnectedError(), True),
        (answer(500), True),
        (answer(429), True),
        (answer(401), False),
        (answer(404, RemoteEntryNotFoundError), False),
        (FileNotFoundError(), False),
        (PermissionError(), False),
        (ValueError("not JSON"), False),
        (KeyError("x"), False),
    ],
    ids=repr,
)
def test_what_another_try_may_help(error: Exception, is_one: bool) -> None:
    assert is_transient(error) == is_one


def test_files_of_a_network_are_read_so_and_local_ones_are_not(slept: list[float]) -> None:
    def read(file: str, start: int) -> Iterator[tuple[int, Any]]:
        yield from ((number, {"text": file}) for number in range(start, 2))
        if not slept or "://" not in file:
            raise ConnectionError("gone")
        yield 2, {"text": "end"}

    remote = source.of_files(["hf://datasets/me/notes@abc/a.jsonl"], read, {})
    assert [number for number, _ in remote.read(0, 0)] == [0, 1, 2]
    assert len(slept) == 1
    local = source.of_files(["/data/a.jsonl"], read, {})
    with pytest.raises(ValueError, match=r"a.jsonl: cannot be read after row 2 .*gone"):
        list(local.read(0, 0))
    assert len(slept) == 1
