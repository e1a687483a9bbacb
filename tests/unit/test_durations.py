"""Seconds as people read them."""

from datetime import timedelta

import pytest

from hf_accum.durations import clock


@pytest.mark.parametrize("seconds", [0, 0.4, 59.6, 61, 3_599, 3_600, 86_399])
def test_it_is_what_a_clock_shows(seconds: float) -> None:
    assert clock(seconds) == str(timedelta(seconds=round(seconds)))


def test_more_than_a_day_stays_in_hours() -> None:
    assert clock(100 * 3_600 + 62) == "100:01:02"
