"""How errors are told in messages of our own: short, in one line, whatever they hold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_accum.errors import (
    NotFinite,
    OutOfMemory,
    RankFailed,
    ReadingFailed,
    Stopped,
    UserError,
    first_line,
    shortened,
    shown,
)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("first\nsecond"), "ValueError: first"),
        (ValueError(), "ValueError:"),
        (ValueError("\n\nlate\nlater"), "ValueError: late"),
        (OSError("reading failed:\n  no disk\nmore"), "OSError: reading failed: no disk"),
    ],
)
def test_the_first_line_that_says_something_is_told(error: Exception, line: str) -> None:
    assert first_line(error).rstrip() == line


@given(text=st.text(max_size=600), longest=st.integers(10, 500))
def test_a_shortened_text_is_the_text_or_its_beginning(text: str, longest: int) -> None:
    short = shortened(text, longest)
    assert len(short) <= longest
    assert short == text or (short.endswith(" ...") and text.startswith(short[:-4]) and len(text) > longest)


@given(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner), max_leaves=30))
def test_any_value_is_shown_in_one_short_line(value: object) -> None:
    text = shown(value)
    assert "\n" not in text
    assert len(text) < 2000
    if isinstance(value, int | None) and len(str(value)) < 40:
        assert text == repr(value)


def test_a_user_s_mistake_is_a_value_error_and_a_fault_of_the_run_is_none() -> None:
    assert issubclass(UserError, ValueError)
    assert issubclass(ReadingFailed, RankFailed)
    for kind in (RankFailed, Stopped, NotFinite, OutOfMemory):
        assert issubclass(kind, RuntimeError)
        assert not issubclass(kind, ValueError)
