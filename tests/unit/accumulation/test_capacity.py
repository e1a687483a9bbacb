"""The largest micro-batch for each length: fitted exactly, kept as data, and corrected where memory runs out."""

import json
import math
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_accum.accumulation.capacity import Capacity, Peak, WorkingCapacity, fit_peak

Moment = Sequence[int]
"""Factors of 1, L, L^2, n, n L, n L^2."""


def bytes_of(moment: Moment, n: int, length: int) -> int:
    """Exact, in integers."""
    a, b, c, d, e, f = moment
    return a + b * length + c * length**2 + n * (d + e * length + f * length**2)


def brute_force(moments: Sequence[Moment], n: int, length: int) -> int:
    return max(bytes_of(moment, n, length) for moment in moments)


def traced(moments: Sequence[Moment], points: Sequence[tuple[int, int]]) -> dict[tuple[int, int], list[int]]:
    return {(n, length): [bytes_of(moment, n, length) for moment in moments] for n, length in points}


def points_of(*lengths: int, numbers: Sequence[int] = (2, 3)) -> list[tuple[int, int]]:
    return [(n, length) for length in lengths for n in numbers]


factors = st.tuples(
    st.integers(0, 10**8),
    st.integers(0, 10**4),
    st.integers(0, 100),
    st.integers(0, 10**6),
    st.integers(0, 10**4),
    st.integers(0, 100),
)
timelines = st.lists(factors, min_size=1, max_size=40)


@given(moments=timelines, longest=st.integers(4, 64), n=st.integers(1, 500), data=st.data())
def test_the_fitted_peak_is_the_largest_of_all_moments_to_the_byte(
    moments: list[Moment], longest: int, n: int, data: st.DataObject
) -> None:
    peak = fit_peak(traced(moments, points_of(longest, longest // 2, longest // 4)))
    for length in data.draw(st.lists(st.integers(1, longest), min_size=1, max_size=20)):
        for number in (1, 2, 3, n):
            assert peak.bytes_at(number, length) == brute_force(moments, number, length)


@settings(max_examples=25)
@given(moments=timelines, longest=st.sampled_from([100, 128, 500, 512, 2048]), data=st.data())
def test_it_is_for_long_texts_too(moments: list[Moment], longest: int, data: st.DataObject) -> None:
    peak = fit_peak(traced(moments, points_of(longest, longest // 2, longest // 4)))
    for length in data.draw(st.lists(st.integers(1, longest), min_size=1, max_size=30)):
        for number in (1, 2, 3, 17, 256):
            assert peak.bytes_at(number, length) == brute_force(moments, number, length)


def test_a_moment_that_leads_only_in_a_narrow_range_counts() -> None:
    """Of lengths; two lines cross and the third passes just above the crossing."""
    for middle in (2, 7, 31, 33, 63):
        # L^2 terms against constants: the chord through (middle - 1, middle + 1) of a parabola leads in between.
        low = (middle**2 * 1000, 0, 0, 0, 0, 0)
        high = (0, 0, 1000, 0, 0, 0)
        chord = (0, middle * 1000 + 10, 0, 0, 0, 0)
        moments = [low, high, chord]
        peak = fit_peak(traced(moments, points_of(64, 32, 16)))
        leaders = {length: brute_force(moments, 5, length) for length in range(1, 65)}
        assert bytes_of(chord, 5, middle) > max(bytes_of(low, 5, middle), bytes_of(high, 5, middle))
        assert {length: peak.bytes_at(5, length) for length in leaders} == leaders


@pytest.mark.parametrize("middle", [5, 13, 21, 300])
def test_a_moment_that_leads_only_in_a_narrow_range_of_long_texts_counts(middle: int) -> None:
    """Lengths up to 512: as above, and wider."""
    for width in (0, 1, 2, 3):
        chord = (-(middle**2 - width**2) * 1000 + 10, 2 * middle * 1000, 0, 0, 0, 0)
        parabola = (0, 0, 1000, 0, 0, 0)
        # Above the parabola by width^2 - (L - middle)^2: just where L is that near.
        moments = [parabola, tuple(a + b for a, b in zip(chord, (10**9, 0, 0, 0, 0, 0), strict=True))]
        moments[0] = (10**9, 0, 1000, 0, 0, 0)
        peak = fit_peak(traced(moments, points_of(512, 256, 128)))
        leaders = {length: brute_force(moments, 1, length) for length in range(1, 513)}
        assert {length: peak.bytes_at(1, length) for length in leaders} == leaders


def test_a_moment_that_leads_only_between_traced_numbers_of_examples_and_many_counts() -> None:
    flat, steep = (10_000, 0, 0, 0, 0, 0), (0, 0, 0, 1000, 0, 0)  # they cross at 10 examples
    between = (5_010, 0, 0, 500, 0, 0)
    moments = [flat, steep, between]
    peak = fit_peak(traced(moments, points_of(16, 8, 4)))
    for n in range(1, 30):
        assert peak.bytes_at(n, 16) == brute_force(moments, n, 16)
    assert peak.bytes_at(10, 16) == 10_010


@given(moments=timelines, longest=st.integers(1, 5000), n=st.integers(1, 500))
def test_one_length_is_enough_where_all_have_it(moments: list[Moment], longest: int, n: int) -> None:
    peak = fit_peak(traced(moments, points_of(longest)))
    assert {len(row) for row in peak.moments} == {2}
    assert peak.bytes_at(n, longest) == brute_force(moments, n, longest)


@given(moments=timelines, longest=st.sampled_from([2, 3]), n=st.integers(1, 500))
def test_very_short_texts(moments: list[Moment], longest: int, n: int) -> None:
    """There are only so many lengths, and each was traced."""
    lengths = list(dict.fromkeys([longest, max(1, longest // 2), max(1, longest // 4)]))
    peak = fit_peak(traced(moments, points_of(*lengths)))
    for length in lengths:
        assert peak.bytes_at(n, length) == brute_force(moments, n, length)


@given(
    moment=factors, extra=st.lists(st.integers(0, 5), min_size=6, max_size=6), n=st.integers(1, 99), data=st.data()
)
def test_traces_of_other_operations_are_fitted_by_their_peaks(
    moment: Moment, extra: list[int], n: int, data: st.DataObject
) -> None:
    """One more small operation at one size: the moments cannot be told apart, the peak can."""
    lower = tuple(factor // 2 for factor in moment)
    points = points_of(64, 32, 16)
    timelines = {
        point: [*[bytes_of(lower, *point)] * count, bytes_of(moment, *point)]
        for point, count in zip(points, [*extra[:5], extra[5] + 6], strict=True)
    }
    peak = fit_peak(timelines)
    assert len(peak.moments) == 1
    length = data.draw(st.integers(1, 64))
    assert peak.bytes_at(n, length) == bytes_of(moment, n, length)


def test_the_order_of_the_traces_does_not_matter() -> None:
    moments = [(5, 4, 3, 2, 1, 7), (9, 0, 1, 1, 9, 0)]
    points = points_of(40, 20, 10, numbers=(1, 8))
    there, back = fit_peak(traced(moments, points)), fit_peak(traced(moments, points[::-1]))
    for n in range(1, 9):
        for length in range(1, 41):
            assert there.bytes_at(n, length) == back.bytes_at(n, length) == brute_force(moments, n, length)


@pytest.mark.parametrize(
    "points",
    [
        [],
        [(2, 8)],
        [(2, 8), (2, 4)],
        [(2, 8), (3, 8), (4, 8)],
        [(2, 8), (3, 8), (2, 4)],
        [(2, 8), (3, 4)],
        points_of(8, 4, 2, 1),
        points_of(8, 4, numbers=(1, 2, 3)),
    ],
)
def test_other_points_are_refused(points: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="two numbers of examples at each of one to three lengths"):
        fit_peak(traced([(1, 1, 1, 1, 1, 1)], points))


# The most examples within a budget


@given(
    moments=timelines,
    length=st.integers(1, 64),
    budget=st.integers(0, 2**32),
    at_most=st.integers(1, 300),
    near=st.none() | st.tuples(st.integers(1, 300), st.integers(-1, 1)),
)
def test_the_largest_size_within_a_budget_is_what_trying_all_finds(
    moments: list[Moment], length: int, budget: int, at_most: int, near: tuple[int, int] | None
) -> None:
    peak = fit_peak(traced(moments, points_of(64, 32, 16)))
    if near is not None:
        budget = brute_force(moments, near[0], length) + near[1]  # just so, or not quite
    fitting = [n for n in range(1, at_most + 1) if brute_force(moments, n, length) <= budget]
    assert peak.largest(length, budget, at_most) == max(fitting, default=0)
    capacity = Capacity(at_most, peak, budget)
    assert capacity.num_examples(length) == max(fitting, default=1)


@given(moments=timelines, budget=st.integers(0, 2**32), most=st.integers(1, 300))
def test_longer_examples_never_come_in_larger_micro_batches(moments: list[Moment], budget: int, most: int) -> None:
    capacity = Capacity(most, fit_peak(traced(moments, points_of(64, 32, 16))), budget)
    sizes = [capacity.num_examples(length) for length in range(1, 65)]
    assert sizes == sorted(sizes, reverse=True)
    assert 1 <= sizes[-1] <= sizes[0] <= most


def test_a_given_number_is_that_at_every_length() -> None:
    capacity = Capacity(7)
    assert [capacity.num_examples(length) for length in (1, 50, 10**6)] == [7] * 3


@pytest.mark.parametrize("most", [0, -1])
def test_a_size_below_one_is_refused(most: int) -> None:
    with pytest.raises(ValueError, match=f"micro-batch size {most}: has to be at least 1"):
        Capacity(most)


# As data


@given(moments=timelines, lengths=st.sampled_from([(64,), (64, 32), (64, 32, 16)]), budget=st.floats(0, 1e12))
def test_a_capacity_comes_back_from_json(moments: list[Moment], lengths: tuple[int, ...], budget: float) -> None:
    capacity = Capacity(200, fit_peak(traced(moments, points_of(*lengths))), budget)
    assert Capacity.from_json(json.loads(json.dumps(capacity.as_json(), allow_nan=False))) == capacity


def test_a_given_number_comes_back_from_json() -> None:
    assert Capacity.from_json(json.loads(json.dumps(Capacity(3).as_json()))) == Capacity(3)


GOOD_PEAK = {"moments": [[1.0, 2.0], [3.0, 1.0]], "unit_length": 8, "single": None}
GOOD = {"most": 3, "peak": GOOD_PEAK, "budget_bytes": 0, "at_least": 1}


def test_the_json_of_which_the_next_test_has_parts_is_read() -> None:
    assert Capacity.from_json(GOOD).peak == Peak(((1.0, 2.0), (3.0, 1.0)), 8)


@pytest.mark.parametrize(
    "value",
    [
        {},
        *({name: one for name, one in GOOD.items() if name != missing} for missing in GOOD),
        *(GOOD | change for change in ({"most": 0}, {"most": "many"}, {"most": None}, {"budget_bytes": "much"})),
        *(GOOD | {"peak": peak} for peak in (5, {name: GOOD_PEAK[name] for name in ("moments", "unit_length")})),
        *(
            GOOD | {"peak": GOOD_PEAK | change}
            for change in (
                {"moments": []},
                {"moments": [[]]},
                {"moments": [[1.0]]},
                {"moments": [[1.0, 2.0, 3.0]]},
                {"moments": [[1.0, 2.0], [1.0, 2.0, 3.0]]},
                {"moments": [[1.0, 2.0], [1.0, 2.0, 3.0, 4.0]]},
                {"moments": [[1.0] * 8]},
                {"moments": [["x", "y"]]},
                {"moments": [[math.nan, 1.0]]},
                {"moments": [[1.0, math.inf]]},
                {"moments": 5},
                {"unit_length": 0},
                {"unit_length": None},
            )
        ),
    ],
)
def test_other_json_is_refused(value: Mapping[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Capacity.from_json(value)


# As a run goes on


def clean_windows(capacity: WorkingCapacity, count: int) -> None:
    for _ in range(count):
        capacity.window_done()


def sizes(capacity: WorkingCapacity, *lengths: int) -> list[int]:
    return [capacity.num_examples(length) for length in lengths]


def test_where_memory_runs_out_half_is_allowed_from_that_length_on() -> None:
    capacity = WorkingCapacity(Capacity(16))
    capacity.out_of_memory(16, 100)
    assert sizes(capacity, 100, 101, 150, 5000) == [8] * 4
    assert sizes(capacity, 1, 30, 49, 50) == [16] * 4
    between = sizes(capacity, *range(51, 101))
    assert between == sorted(between, reverse=True)
    assert all(8 <= size <= 16 for size in between)
    assert all(n * length <= 8 * 100 for n, length in zip(between, range(51, 101), strict=True))


def test_without_gradients_as_many_tokens_as_fit_of_the_longest_fit_of_shorter_ones() -> None:
    capacity = WorkingCapacity(Capacity(4), most_tokens=400)
    assert sizes(capacity, 0, 1, 7, 50, 100, 101, 1000) == [400, 400, 57, 8, 4, 4, 4]
    capacity.out_of_memory(8, 50)
    assert sizes(capacity, 50, 100, 26, 20) == [4, 4, 7, 20]


@given(moments=timelines, budget=st.integers(0, 2**32), tokens=st.integers(1, 5000), length=st.integers(1, 64))
def test_of_those_no_more_than_fit_where_the_peak_says_how_many(
    moments: list[Moment], budget: int, tokens: int, length: int
) -> None:
    peak = fit_peak(traced(moments, points_of(64, 32, 16)))
    number = WorkingCapacity(Capacity(2, peak, float(budget)), tokens).num_examples(length)
    assert number <= max(tokens // length, 2)
    if number > 1:
        assert brute_force(moments, number, length) <= budget
    if max(1, tokens // length) > number:
        assert brute_force(moments, number + 1, length) > budget


def test_it_never_goes_below_one() -> None:
    capacity = WorkingCapacity(Capacity(3))
    for _ in range(5):
        capacity.out_of_memory(capacity.num_examples(10), 10)
        assert capacity.num_examples(10) == 1
        assert capacity.num_examples(10**6) == 1


def test_it_grows_back_after_clean_windows() -> None:
    capacity = WorkingCapacity(Capacity(16))
    capacity.out_of_memory(16, 100)
    found = []
    for _ in range(20):
        clean_windows(capacity, 63)
        found.append(capacity.num_examples(100))
        clean_windows(capacity, 1)
    assert found[:5] == [8, 12, 14, 15, 16]  # half way to the one that failed, at last that
    assert set(found[4:]) == {16}


def test_a_size_that_fails_again_goes_back_to_the_last_good_one_and_waits_twice_as_long() -> None:
    capacity = WorkingCapacity(Capacity(16))
    capacity.out_of_memory(16, 100)
    clean_windows(capacity, 64)
    assert capacity.num_examples(100) == 12
    for patience in (128, 256):
        failed = capacity.num_examples(100)
        capacity.out_of_memory(failed, 100)
        assert capacity.num_examples(100) == 8
        clean_windows(capacity, patience - 1)
        assert capacity.num_examples(100) == 8
        clean_windows(capacity, 1)
        assert 8 < capacity.num_examples(100) < failed


def test_the_size_that_failed_first_goes_back_to_the_last_good_one_too() -> None:
    capacity = WorkingCapacity(Capacity(8))
    capacity.out_of_memory(8, 100)
    clean_windows(capacity, 3 * 64)
    assert capacity.num_examples(100) == 8
    capacity.out_of_memory(8, 100)
    assert capacity.num_examples(100) == 7
    clean_windows(capacity, 2 * 64 - 1)
    assert capacity.num_examples(100) == 7


@pytest.mark.parametrize("most", [2, 3, 8, 50])
def test_a_size_that_never_fits_is_tried_less_and_less_often(most: int) -> None:
    """On a device where one less than the tuned size is all that fits."""
    capacity = WorkingCapacity(Capacity(most))
    failures = []
    for window in range(2**14):
        if capacity.num_examples(100) == most:
            failures.append(window)
            capacity.out_of_memory(most, 100)
        capacity.window_done()
    assert len(failures) <= 9  # 64 windows between the first two, twice as many each time


def test_what_failed_on_the_way_up_is_tried_before_anything_larger() -> None:
    capacity = WorkingCapacity(Capacity(64))
    capacity.out_of_memory(64, 100)
    capacity.out_of_memory(32, 100)
    seen = [capacity.num_examples(100)]
    for _ in range(64 * 100):
        capacity.window_done()
        if capacity.num_examples(100) != seen[-1]:
            seen.append(capacity.num_examples(100))
    assert seen[0] == 16
    assert seen == sorted(seen)
    assert seen[-1] == 64
    assert 32 in seen, seen


def test_two_lengths_far_apart_are_corrected_by_themselves() -> None:
    capacity = WorkingCapacity(Capacity(32))
    capacity.out_of_memory(32, 500)
    capacity.out_of_memory(32, 50)
    assert sizes(capacity, 20, 50, 240, 500) == [32, 16, 16, 16]
    capacity.out_of_memory(16, 500)
    assert sizes(capacity, 50, 240, 500) == [16, 16, 8]


def test_the_tuned_size_of_a_length_still_counts() -> None:
    peak = Peak(((0.0, 0.0, 0.0, 0.0, 1000.0, 0.0),), 100)  # 10 bytes a token
    tuned = Capacity(64, peak, 8000.0)
    capacity = WorkingCapacity(tuned)
    capacity.out_of_memory(16, 50)
    for length in range(1, 101):
        assert capacity.num_examples(length) <= tuned.num_examples(length)
    assert sizes(capacity, 10, 50, 100) == [64, 8, 8]
    clean_windows(capacity, 1000)
    assert [capacity.num_examples(n) for n in range(1, 101)] == [tuned.num_examples(n) for n in range(1, 101)]


@given(
    most=st.integers(1, 64),
    fitted=st.booleans(),
    steps=st.lists(st.tuples(st.integers(1, 200), st.integers(0, 200), st.booleans()), max_size=40),
)
def test_a_size_that_failed_is_smaller_next_and_never_above_the_tuned_one(
    most: int, fitted: bool, steps: list[tuple[int, int, bool]]
) -> None:
    """Whatever runs out of memory, and however many windows go well between."""
    peak = Peak(((100.0, 5.0, 3.0, 40.0, 900.0, 70.0),), 200) if fitted else None
    tuned = Capacity(most, peak, 20_000.0)
    capacity = WorkingCapacity(tuned)
    for length, num_windows, part_only in steps:
        clean_windows(capacity, num_windows)
        allowed = capacity.num_examples(length)
        failed = math.ceil(allowed / 2) if part_only else allowed  # the last micro-batch of a window may be smaller
        capacity.out_of_memory(failed, length)
        assert capacity.num_examples(length) < failed or failed == 1
        for other in range(1, 201):
            assert 1 <= capacity.num_examples(other) <= tuned.num_examples(other)


def test_where_the_allocator_strains_predicted_peaks_reach_less() -> None:
    capacity = WorkingCapacity(
        Capacity(64, fit_peak(traced([(0, 0, 0, 0, 4, 0)], points_of(16, 8, 4))), 1000.0, at_least=9)
    )
    before, version = capacity.num_examples(8), capacity.version
    for _ in range(3):
        assert capacity.tighten()
    assert capacity.version == version + 3
    assert capacity.tuned.budget_bytes == pytest.approx(1000 * 0.97**3)
    assert capacity.num_examples(8) < before
    assert not WorkingCapacity(Capacity(64)).tighten()  # a number that was given
