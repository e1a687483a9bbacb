"""Bytes as people write them."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_accum.byte_sizes import format_bytes, parse_bytes

FACTORS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12} | {
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}


@given(st.integers(1, 2**50))
def test_a_plain_number_is_bytes(number: int) -> None:
    assert parse_bytes(str(number)) == parse_bytes(f"{number}B") == number


@given(
    number=st.integers(1, 4000),
    unit=st.sampled_from(sorted(FACTORS)),
    ending=st.sampled_from(["", "B", "b"]),
    spaces=st.tuples(*[st.sampled_from(["", " ", "  "])] * 3),
    case=st.sampled_from([str.lower, str.upper, str]),
)
def test_units_of_a_thousand_and_of_1024_in_any_case(
    number: int, unit: str, ending: str, spaces: tuple[str, str, str], case: type[str]
) -> None:
    before, between, after = spaces
    assert parse_bytes(f"{before}{number}{between}{case(unit)}{ending}{after}") == number * FACTORS[unit]


@given(
    whole=st.integers(0, 999),
    digits=st.text("0123456789", min_size=1, max_size=3),
    unit=st.sampled_from(sorted(FACTORS)),
)
def test_a_fraction_is_rounded_down_to_the_byte(whole: int, digits: str, unit: str) -> None:
    exact = math.floor(Fraction(f"{whole}.{digits}") * FACTORS[unit])
    text = f"{whole}.{digits}{unit}B"
    if exact < 1:
        with pytest.raises(ValueError, match="has to be bytes"):
            parse_bytes(text)
    else:
        assert parse_bytes(text) == exact


@pytest.mark.parametrize(
    ("text", "expected"),
    [("6GiB", 6 * 2**30), ("500MB", 500 * 10**6), ("6442450944", 6442450944), ("1.5g", 15 * 10**8), ("2ki", 2048)],
)
def test_examples_of_the_documentation(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "auto", "B", "GiB", "i", "6i", "6iB", "6 Gi Bytes", "6GiBB", "6PB", "6gig", "1,000", "1_000"),
        *("-1", "+1", "-6GiB", "0", "0GiB", "0.0", "0.4", "0.0001K", ".5G", "5.G", "1e9", "0x10", "nan", "inf"),
        *("6 GiB 2", "6\nx", "\u0661GB", "1" + "0" * 400),
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="has to be bytes, as 6GiB, 500MB or"):
        parse_bytes(text)


@given(st.text(max_size=12))
def test_any_text_is_a_positive_number_or_refused(text: str) -> None:
    try:
        assert parse_bytes(text) >= 1
    except ValueError as error:
        assert repr(text) in str(error)  # noqa: PT017


@given(st.integers(-(2**50), 2**50))
def test_what_is_written_for_people_is_near(num_bytes: int) -> None:
    number, unit = format_bytes(num_bytes).split()
    assert unit == ("GiB" if abs(num_bytes) >= 2**30 else "MiB" if abs(num_bytes) >= 2**20 else "KiB")
    factor, step = {"GiB": (2**30, Fraction(2**30, 100)), "MiB": (2**20, 2**20), "KiB": (2**10, 2**10)}[unit]
    written = Fraction(number.replace(",", "")) * factor
    if unit == "KiB":  # never 0 of something that is missing
        assert 0 <= written - num_bytes < step
    else:
        assert abs(written - num_bytes) <= step / 2


def test_texts_for_people() -> None:
    assert format_bytes(5.97 * 2**30) == "5.97 GiB"
    assert format_bytes(312 * 2**20) == "312 MiB"
    assert format_bytes(1023 * 2**20) == "1,023 MiB"
    assert format_bytes(2**30) == "1.00 GiB"
    assert format_bytes(1) == "1 KiB"
    assert format_bytes(0) == "0 KiB"
