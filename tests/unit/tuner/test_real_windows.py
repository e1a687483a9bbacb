"""Real lengths from a file, and the windows that a run would cut of them."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_accum.accumulation.capacity import Peak
from hf_accum.errors import UserError
from hf_accum.tuner.prediction import Prediction
from hf_accum.tuner.real_windows import NUM_WINDOWS, read_lengths, windows_of
from hf_accum.tuner.tracing import FixedBytes

MAX_LENGTH = 60
PEAK = Peak(((0.0, 0.0, 0.0, 60.0),), MAX_LENGTH)  # a byte a token
PREDICTION = Prediction(PEAK, PEAK, PEAK, FixedBytes(0, 0, 0, 0), [])


def test_a_file_has_a_number_a_line(tmp_path: Path) -> None:
    file = tmp_path / "lengths.txt"
    file.write_text("12\n 7 \n512\n")
    assert read_lengths(file) == [12, 7, 512]
    file.write_bytes(b"\xef\xbb\xbf12\r\n7\r\n")  # as some editors write it
    assert read_lengths(file) == [12, 7]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"12\n\n7", r"line 2: '' has to be a number of tokens, from 1 on"),
        (b"0", r"line 1: '0' has to be a number of tokens, from 1 on"),
        (b"12\n-3", r"line 2: '-3' has to be"),
        (b"1.5", r"line 1: '1.5' has to be"),
        (b"9" * 5000, r"line 1: '9+' has to be"),
        ("\u00b2".encode(), r"line 1: '\u00b2' has to be"),
        (b"", r"has to have a number of tokens on each line, it is empty"),
        (b"\xff\xfe", r"cannot be read"),
        (None, r"cannot be read"),
    ],
)
def test_anything_else_is_said(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "lengths.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=rf"^`lengths` .*lengths.txt.*{message}"):
        read_lengths(file)


@given(st.lists(st.integers(1, 2 * MAX_LENGTH), min_size=1, max_size=60), st.integers(1, 9), st.integers(1, 4))
def test_windows_have_each_length_once_in_micro_batches_that_fit(
    lengths: list[int], num_examples: int, largest: int
) -> None:
    windows = windows_of(lengths, num_examples, MAX_LENGTH, PREDICTION, largest)
    assert [sum(number for number, _ in window) for window in windows] == [
        len(lengths[at : at + num_examples]) for at in range(0, len(lengths), num_examples)
    ]
    for window, at in zip(windows, range(0, len(lengths), num_examples), strict=True):
        assert all(length % 8 == 0 or length == MAX_LENGTH for _, length in window)
        assert all(number == 1 or number * length <= largest * MAX_LENGTH for number, length in window)
        # The k longest examples lie in micro-batches at least as long.
        places = Counter({length: 0 for _, length in window})
        for number, length in window:
            places[length] += number
        for length in places:
            longer = sum(min(one, MAX_LENGTH) > length for one in lengths[at : at + num_examples])
            assert sum(number for place, number in places.items() if place > length) >= longer


def test_there_are_a_hundred_at_most() -> None:
    assert windows_of([8] * 1000, 3, MAX_LENGTH, PREDICTION, 1) == [[(3, 8)]] * NUM_WINDOWS
