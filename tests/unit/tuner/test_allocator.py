"""The caching allocator: sequences counted by hand, and against one that keeps no blocks."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interval_allocator import IntervalAllocator

from hf_accum.tuner.allocator import Allocate, CachingAllocator, Free, replay

K, M = 2**10, 2**20

EMPTY = "the cache is emptied"
FAILS = "fails"


@dataclass(frozen=True)
class Case:
    """What is done: a name and its bytes, a name alone that is freed, or EMPTY. Behind it what is allocated and
    reserved then, in bytes; FAILS before them where there is not enough memory.
    """

    shows: str
    steps: Sequence[tuple[Any, ...]]
    options: dict[str, Any] = field(default_factory=dict)
    num_retries: int = 0


FOUR_HALVES = [(name, 512 * K, (i + 1) * 512 * K, 2 * M) for i, name in enumerate("abcd")]
EXPANDABLE = {"expandable_segments": True}

CASES = [
    Case("a byte takes 512, in a segment of 2 MiB", [("a", 1, 512, 2 * M)]),
    Case("sizes are rounded up to 512", [("a", 512, 512, 2 * M), ("b", 513, 512 + 1024, 2 * M)]),
    Case("a tensor without elements takes nothing", [("a", 0, 0, 0), ("a", 0, 0)]),
    Case(
        "two blocks of 1 MiB fill a small segment",
        [("a", M, M, 2 * M), ("b", M, 2 * M, 2 * M), ("c", 1, 2 * M + 512, 4 * M)],
    ),
    Case(
        "a small segment is used to its last 512 bytes",
        [
            ("a", M, M, 2 * M),
            ("b", M - 512, 2 * M - 512, 2 * M),
            ("c", 9, 2 * M, 2 * M),
            ("d", 9, 2 * M + 512, 4 * M),
        ],
    ),
    Case("above 1 MiB a segment has 20 MiB", [("a", M + 1, M + 512, 20 * M)]),
    Case("rounded up to 1 MiB it is small", [("a", M - 1, M, 2 * M)]),
    Case("below 10 MiB too", [("a", 10 * M - 512, 10 * M - 512, 20 * M)]),
    Case("from 10 MiB on a segment has its block's size", [("a", 10 * M, 10 * M, 10 * M)]),
    Case("rounded up to 10 MiB, as well", [("a", 10 * M - 511, 10 * M, 10 * M)]),
    Case("the size of a large segment is rounded up to 2 MiB", [("a", 31 * M, 32 * M, 32 * M)]),
    Case(
        "up to 1 MiB that is left of a large block goes with it",
        [("a", 11 * M, 12 * M, 12 * M), ("b", M + 1, 13 * M + 512, 32 * M)],
    ),
    Case(
        "more than 1 MiB stays free, for who fits in",
        [
            ("a", 11 * M - 512, 11 * M - 512, 12 * M),
            ("b", M + 1, 12 * M, 12 * M),
            ("c", M + 1, 13 * M + 512, 32 * M),
        ],
    ),
    Case(
        "five of 4 MiB in a segment of 20",
        [*((name, 4 * M, (i + 1) * 4 * M, 20 * M) for i, name in enumerate("abcde")), ("f", 4 * M, 24 * M, 40 * M)],
    ),
    Case("what is freed stays reserved, and is used again", [("a", 12 * M, 12 * M, 12 * M), ("a", 0, 12 * M)] * 3),
    Case(
        "the smallest that fits, not the first",
        [
            ("a", 14 * M, 14 * M, 14 * M),
            ("b", 12 * M, 26 * M, 26 * M),
            ("a", 12 * M, 26 * M),
            ("b", 0, 26 * M),
            ("c", 12 * M, 12 * M, 26 * M),
            ("d", 14 * M, 26 * M, 26 * M),
        ],
    ),
    Case(
        "of equal ones that at the lowest address: the second segment can then be given back",
        [
            *((name, 512 * K, (i + 1) * 512 * K, (2 + i // 4 * 2) * M) for i, name in enumerate("abcdefgh")),
            ("h", 3584 * K, 4 * M),
            ("d", 3 * M, 4 * M),
            ("i", 512 * K, 3584 * K, 4 * M),
            ("e", 3 * M, 4 * M),
            ("f", 2560 * K, 4 * M),
            ("g", 2 * M, 4 * M),
            (EMPTY, 2 * M, 2 * M),
        ],
    ),
    Case(
        "free neighbours are one block",
        [*FOUR_HALVES, ("b", 1536 * K, 2 * M), ("c", M, 2 * M), ("e", M, 2 * M, 2 * M)],
    ),
    Case(
        "joined with the one before and the one behind",
        [
            *FOUR_HALVES,
            ("a", 1536 * K, 2 * M),
            ("c", M, 2 * M),
            ("b", 512 * K, 2 * M),
            ("e", M + 1, M + 512 + 512 * K, 22 * M),
            ("f", M, 2 * M + 512 + 512 * K, 22 * M),
        ],
    ),
    Case(
        "with one in use between them they are two",
        [*FOUR_HALVES, ("a", 1536 * K, 2 * M), ("c", M, 2 * M), ("e", M, 2 * M, 4 * M)],
    ),
    Case(
        "segments side by side are not joined",
        [
            ("a", 12 * M, 12 * M, 12 * M),
            ("b", 12 * M, 24 * M, 24 * M),
            ("a", 12 * M, 24 * M),
            ("b", 0, 24 * M),
            ("c", 24 * M, 24 * M, 48 * M),
        ],
    ),
    Case(
        "the pools share nothing",
        [
            ("a", 4 * M, 4 * M, 20 * M),
            ("a", 0, 20 * M),
            ("b", M, M, 22 * M),
            ("b", 0, 22 * M),
            ("c", 20 * M, 20 * M, 22 * M),
        ],
    ),
    Case(
        "a little longer every time: what is free is too small each time, and stays",
        [
            ("a", 10 * M, 10 * M, 10 * M),
            ("a", 0, 10 * M),
            ("a", 12 * M, 12 * M, 22 * M),
            ("a", 0, 22 * M),
            ("a", 14 * M, 14 * M, 36 * M),
        ],
    ),
    Case(
        "only segments that are wholly free are given back",
        [
            ("a", M, M, 2 * M),
            ("b", M, 2 * M, 2 * M),
            ("c", M, 3 * M, 4 * M),
            ("d", 30 * M, 33 * M, 34 * M),
            ("a", 32 * M, 34 * M),
            ("c", 31 * M, 34 * M),
            ("d", M, 34 * M),
            (EMPTY, M, 2 * M),
        ],
    ),
    Case("the limit may be reached", [("a", 30 * M, 30 * M, 30 * M)], {"limit_bytes": 30 * M}),
    Case(
        "at the limit what is free is given back: a retry",
        [("a", 20 * M, 20 * M, 20 * M), ("a", 0, 20 * M), ("b", 24 * M, 24 * M, 24 * M)],
        {"limit_bytes": 30 * M},
        num_retries=1,
    ),
    Case(
        "a retry gives back all that is free, of both pools, though less would do",
        [
            ("a", 10 * M, 10 * M, 10 * M),
            ("b", 12 * M, 22 * M, 22 * M),
            ("c", 1, 22 * M + 512, 24 * M),
            ("a", 12 * M + 512, 24 * M),
            ("b", 512, 24 * M),
            ("c", 0, 24 * M),
            ("d", 14 * M, 14 * M, 14 * M),
        ],
        {"limit_bytes": 30 * M},
        num_retries=1,
    ),
    Case(
        "out of memory: what is free is gone by then, what is in use stays",
        [
            ("a", 20 * M, 20 * M, 20 * M),
            ("b", 1, 20 * M + 512, 22 * M),
            ("b", 20 * M, 22 * M),
            ("c", 12 * M, FAILS, 20 * M, 20 * M),
            ("d", M, 21 * M, 22 * M),
        ],
        {"limit_bytes": 30 * M},
        num_retries=1,
    ),
    Case(
        "out of memory with enough that is free, in pieces",
        [
            ("a", 8 * M, 8 * M, 20 * M),
            ("b", 4 * M, 12 * M, 20 * M),
            ("c", 8 * M, 20 * M, 20 * M),
            ("a", 12 * M, 20 * M),
            ("c", 4 * M, 20 * M),
            ("d", 12 * M, FAILS, 4 * M, 20 * M),
        ],
        {"limit_bytes": 30 * M},
        num_retries=1,
    ),
    Case(
        "a device is as a limit",
        [
            ("a", 20 * M, 20 * M, 20 * M),
            ("a", 0, 20 * M),
            ("b", 24 * M, 24 * M, 24 * M),
            ("c", 24 * M, FAILS, 24 * M, 24 * M),
        ],
        {"device_bytes": 30 * M},
        num_retries=2,
    ),
    Case("expandable: small pages have 2 MiB", [("a", 1, 512, 2 * M), ("b", M, M + 512, 2 * M)], EXPANDABLE),
    Case("expandable: large pages have 20 MiB", [("a", M + 1, M + 512, 20 * M)], EXPANDABLE),
    Case(
        "expandable: as many as are needed, and their rest is used",
        [("a", 30 * M, 30 * M, 40 * M), ("b", 10 * M, 40 * M, 40 * M)],
        EXPANDABLE,
    ),
    Case(
        "expandable: a block may lie on two pages, mapped one by one",
        [("a", 15 * M, 15 * M, 20 * M), ("b", 10 * M, 25 * M, 40 * M), ("c", 15 * M, 40 * M, 40 * M)],
        EXPANDABLE,
    ),
    Case(
        "expandable: also large blocks are cut to 512 bytes",
        [("a", 19 * M + 1, 19 * M + 512, 20 * M), ("b", M + 1, 20 * M + 1024, 40 * M)],
        EXPANDABLE,
    ),
    Case(
        "expandable: pages are joined",
        [
            ("a", 20 * M, 20 * M, 20 * M),
            ("b", 20 * M, 40 * M, 40 * M),
            ("a", 20 * M, 40 * M),
            ("b", 0, 40 * M),
            ("c", 40 * M, 40 * M, 40 * M),
        ],
        EXPANDABLE,
    ),
    Case(
        "expandable: a little longer every time, with what was there",
        [
            ("a", 10 * M, 10 * M, 20 * M),
            ("a", 0, 20 * M),
            ("a", 21 * M, 21 * M, 40 * M),
            ("a", 0, 40 * M),
            ("a", 42 * M, 42 * M, 60 * M),
        ],
        EXPANDABLE,
    ),
    Case(
        "expandable: pages that are wholly free are given back, and filled first",
        [
            ("a", 10 * M, 10 * M, 20 * M),
            ("b", 30 * M, 40 * M, 40 * M),
            ("c", 2 * M, 42 * M, 60 * M),
            ("b", 12 * M, 60 * M),
            (EMPTY, 12 * M, 40 * M),
            ("d", 30 * M, 42 * M, 60 * M),
            ("e", 18 * M, 60 * M, 60 * M),
        ],
        EXPANDABLE,
    ),
    Case(
        "expandable: a hole that is too small is left, the end grows",
        [
            ("a", 10 * M, 10 * M, 20 * M),
            ("b", 30 * M, 40 * M, 40 * M),
            ("c", 2 * M, 42 * M, 60 * M),
            ("b", 12 * M, 60 * M),
            (EMPTY, 12 * M, 40 * M),
            ("d", 31 * M, 43 * M, 60 * M),
            ("e", 30 * M, 73 * M, 80 * M),
        ],
        EXPANDABLE,
    ),
    Case(
        "expandable: a hole is used before the end, though the end is smaller, since it could grow",
        [
            ("a", 25 * M, 25 * M, 40 * M),
            ("b", 10 * M, 35 * M, 40 * M),
            ("a", 10 * M, 40 * M),
            ("d", 5 * M, 15 * M, 40 * M),
            ("e", 25 * M, 40 * M, 60 * M),
        ],
        EXPANDABLE,
    ),
    Case(
        "expandable: of two that could be equally large the smaller is used, and grows where it must",
        [
            ("a", 10 * M, 10 * M, 20 * M),
            ("b", 30 * M, 40 * M, 40 * M),
            ("c", 10 * M, 50 * M, 60 * M),
            ("d", 30 * M, 80 * M, 80 * M),
            ("e", 15 * M, 95 * M, 100 * M),
            ("b", 65 * M, 100 * M),
            (EMPTY, 65 * M, 80 * M),
            ("d", 35 * M, 80 * M),
            ("f", 10 * M, 45 * M, 80 * M),
            ("g", 30 * M, 75 * M, 80 * M),
        ],
        EXPANDABLE,
    ),
    Case(
        "expandable: pages are mapped before and behind what is free",
        [
            ("a", 20 * M, 20 * M, 20 * M),
            ("b", 20 * M, 40 * M, 40 * M),
            ("a", 20 * M, 40 * M),
            (EMPTY, 20 * M, 20 * M),
            ("b", 0, 20 * M),
            ("c", 45 * M, 45 * M, 60 * M),
        ],
        EXPANDABLE,
    ),
    Case(
        "expandable: what was mapped before the device was full is given back by the retry",
        [
            ("a", 20 * M, 20 * M, 20 * M),
            ("b", 20 * M, 40 * M, 40 * M),
            ("a", 20 * M, 40 * M),
            (EMPTY, 20 * M, 20 * M),
            ("b", 0, 20 * M),
            ("c", 45 * M, FAILS, 0, 0),
        ],
        EXPANDABLE | {"device_bytes": 50 * M},
        num_retries=1,
    ),
    Case(
        "expandable: the limit knows no pages, and is passed",
        [("a", 30 * M, 30 * M, 40 * M)],
        EXPANDABLE | {"limit_bytes": 30 * M},
    ),
    Case(
        "expandable: the device is not passed",
        [("a", 30 * M, FAILS, 0, 0), ("b", 20 * M, 20 * M, 20 * M)],
        EXPANDABLE | {"device_bytes": 30 * M},
        num_retries=1,
    ),
    Case(
        "expandable: the limit counts a whole segment where a page would do",
        [("a", 35 * M, 35 * M, 40 * M), ("b", 25 * M, FAILS, 35 * M, 40 * M)],
        EXPANDABLE | {"limit_bytes": 60 * M},
        num_retries=1,
    ),
    Case(
        "expandable: where only the device has an end it does",
        [("a", 35 * M, 35 * M, 40 * M), ("b", 25 * M, 60 * M, 60 * M)],
        EXPANDABLE | {"device_bytes": 60 * M},
    ),
    Case(
        "expandable: a retry unmaps what the small pool does not use",
        [("a", 1, 512, 2 * M), ("a", 0, 2 * M), ("b", 20 * M, 20 * M, 20 * M)],
        EXPANDABLE | {"limit_bytes": 20 * M},
        num_retries=1,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.shows)
def test_a_sequence_counted_by_hand(case: Case) -> None:
    allocator = CachingAllocator(**case.options)
    oracle = IntervalAllocator(
        case.options.get("limit_bytes"),
        case.options.get("device_bytes"),
        case.options.get("expandable_segments", False),
    )
    for key, *num_bytes, allocated, reserved in case.steps:
        if key == EMPTY:
            allocator.empty_cache()
            oracle.empty_cache()
        elif not num_bytes:
            allocator.free(key)
            oracle.free(key)
        elif num_bytes[1:] == [FAILS]:
            with pytest.raises(torch.OutOfMemoryError):
                allocator.allocate(key, num_bytes[0])
            assert not oracle.allocate(key, num_bytes[0])
        else:
            allocator.allocate(key, num_bytes[0])
            assert oracle.allocate(key, num_bytes[0])
        assert (allocator.allocated_bytes, allocator.reserved_bytes) == (allocated, reserved), key
        assert (oracle.allocated_bytes, oracle.reserved_bytes) == (allocated, reserved), key
    assert allocator.num_retries == oracle.num_retries == case.num_retries


sizes = st.one_of(
    st.integers(0, 3000),
    st.integers(1, M),
    st.sampled_from([M, 10 * M, 20 * M, 12 * M]).flatmap(lambda edge: st.integers(edge - 1100, edge + 1100)),
    st.integers(1, 40).map(lambda number: number * M),
    st.integers(M, 70 * M),
)
steps_of = st.lists(st.tuples(st.sampled_from(["allocate", "allocate", "free", "free", "empty"]), sizes), max_size=60)
limits = st.one_of(st.none(), st.integers(1, 100).map(lambda number: number * 2 * M), st.integers(M, 200 * M))


def run_steps(
    allocator: CachingAllocator,
    steps: Sequence[tuple[str, int]],
    and_then: Callable[[str, int, int, bool], None] = lambda *_: None,
) -> dict[int, int]:
    """Do random steps. `and_then` is told of each: what, its number or that of what it frees, bytes, and whether it
    went well. Returns what was asked for and is alive, by number."""
    alive: dict[int, int] = {}
    for number, (what, size) in enumerate(steps):
        went_well, key = True, number
        if what == "allocate":
            try:
                allocator.allocate(number, size)
                alive[number] = size
            except torch.OutOfMemoryError:
                went_well = False
        elif what == "free" and alive:
            key = sorted(alive)[size % len(alive)]
            del alive[key]
            allocator.free(key)
        elif what == "empty" and size % 4 == 0:
            allocator.empty_cache()
        else:
            continue
        and_then(what, key, size, went_well)
    return alive


@settings(max_examples=300, deadline=None)
@given(steps=steps_of, limit=limits, device=limits, expandable=st.booleans())
def test_one_without_blocks_says_the_same(
    steps: list[tuple[str, int]], limit: int | None, device: int | None, expandable: bool
) -> None:
    allocator = CachingAllocator(limit, device_bytes=device, expandable_segments=expandable)
    oracle = IntervalAllocator(limit, device, expandable)

    def compare(what: str, key: int, size: int, went_well: bool) -> None:
        if what == "allocate":
            assert oracle.allocate(key, size) == went_well
        elif what == "free":
            oracle.free(key)
        else:
            oracle.empty_cache()
        assert allocator.reserved_bytes == oracle.reserved_bytes
        assert allocator.allocated_bytes == oracle.allocated_bytes
        assert allocator.num_retries == oracle.num_retries

    run_steps(allocator, steps, compare)


@settings(max_examples=150, deadline=None)
@given(steps=steps_of, limit=limits, device=limits, expandable=st.booleans())
def test_blocks_fill_their_segments_and_the_sums_are_right(
    steps: list[tuple[str, int]], limit: int | None, device: int | None, expandable: bool
) -> None:
    allocator = CachingAllocator(limit, device_bytes=device, expandable_segments=expandable)
    asked: dict[int, int] = {}
    peak = 0

    def check(what: str, key: int, size: int, went_well: bool) -> None:
        nonlocal peak
        asked.pop(key, None)
        if what == "allocate" and went_well:
            asked[key] = size
        segments = allocator.snapshot()
        for segment in segments:
            for block, after in pairwise(segment):
                assert block.address + block.num_bytes == after.address
                assert not (block.is_free and after.is_free)
                assert block.is_small == after.is_small
        for one, other in pairwise(segments):
            if one[-1].is_small == other[0].is_small:
                assert one[-1].address + one[-1].num_bytes <= other[0].address
        blocks = [block for segment in segments for block in segment]
        assert all(block.num_bytes % 512 == 0 and block.num_bytes > 0 for block in blocks)
        assert allocator.reserved_bytes == sum(block.num_bytes for block in blocks)
        assert allocator.allocated_bytes == sum(block.num_bytes for block in blocks if not block.is_free)
        assert sum(not block.is_free for block in blocks) == sum(size > 0 for size in asked.values())
        assert sum(asked.values()) <= allocator.allocated_bytes <= allocator.reserved_bytes
        peak = max(peak, allocator.reserved_bytes)
        assert peak <= allocator.peak_reserved_bytes
        if device is not None:
            assert allocator.peak_reserved_bytes <= device
        if limit is not None:
            assert allocator.peak_reserved_bytes < limit + (20 * M if expandable else 1)

    assert run_steps(allocator, steps, check) == asked


@settings(max_examples=60, deadline=None)
@given(steps=steps_of, limit=limits, expandable=st.booleans())
def test_what_is_all_freed_and_emptied_leaves_nothing(
    steps: list[tuple[str, int]], limit: int | None, expandable: bool
) -> None:
    allocator = CachingAllocator(limit, expandable_segments=expandable)
    for key in run_steps(allocator, steps):
        allocator.free(key)
    assert allocator.allocated_bytes == 0
    assert all(len(segment) == 1 for segment in allocator.snapshot())
    allocator.empty_cache()
    assert (allocator.reserved_bytes, allocator.snapshot()) == (0, [])


@settings(max_examples=60, deadline=None)
@given(steps=steps_of, limit=limits, expandable=st.booleans())
def test_the_same_sequence_ends_in_the_same_state(
    steps: list[tuple[str, int]], limit: int | None, expandable: bool
) -> None:
    one, other = (CachingAllocator(limit, expandable_segments=expandable) for _ in range(2))
    run_steps(one, steps)
    run_steps(other, steps)
    assert one.snapshot() == other.snapshot()
    assert (one.peak_reserved_bytes, one.num_retries) == (other.peak_reserved_bytes, other.num_retries)


@settings(max_examples=60, deadline=None)
@given(num_bytes=st.lists(sizes, min_size=1, max_size=12), seed=st.integers(0, 1000), expandable=st.booleans())
def test_a_window_again_and_again_stops_growing(num_bytes: list[int], seed: int, expandable: bool) -> None:
    """In each window in which it grows, it needs a larger set of segments: these are limited."""
    rng = random.Random(seed)
    events: list[Allocate | Free] = []
    alive: list[int] = []
    for key, size in enumerate(num_bytes):
        events.append(Allocate(key, size))
        alive.append(key)
        while alive and rng.random() < 0.4:
            events.append(Free(alive.pop(rng.randrange(len(alive)))))
    events += [Free(key) for key in alive]
    allocator = CachingAllocator(expandable_segments=expandable)
    reserved: list[int] = []
    for _ in range(len(num_bytes) ** 2 + 1):
        replay(events, allocator)
        reserved.append(allocator.reserved_bytes)
        if len(reserved) > 1 and reserved[-1] == reserved[-2]:
            break
    assert reserved == sorted(reserved)
    state = allocator.snapshot()
    again = [replay(events, allocator) for _ in range(3)]
    assert again == [[reserved[-1]] * len(events)] * 3
    assert allocator.snapshot() == state


def test_a_replay_says_what_is_reserved_after_each_event_and_goes_on_where_the_last_one_ended() -> None:
    allocator = CachingAllocator()
    first = replay([Allocate("weights", 30 * M), Allocate("x", 1), Allocate(("y", 2), 0), Free("x")], allocator)
    assert first == [30 * M, 32 * M, 32 * M, 32 * M]
    assert replay((event for event in (Free("weights"), Allocate("x", 30 * M))), allocator) == [32 * M] * 2
    assert (allocator.allocated_bytes, allocator.peak_reserved_bytes) == (30 * M, 32 * M)


def test_the_peak_stays_when_the_cache_is_emptied() -> None:
    allocator = CachingAllocator()
    replay([Allocate("a", 30 * M), Free("a")], allocator)
    allocator.empty_cache()
    replay([Allocate("b", 10 * M)], allocator)
    assert (allocator.reserved_bytes, allocator.peak_reserved_bytes) == (10 * M, 30 * M)


def test_what_is_not_there_cannot_be_freed() -> None:
    allocator = CachingAllocator()
    replay([Allocate("a", 1), Free("a")], allocator)
    with pytest.raises(KeyError):
        allocator.free("a")
    with pytest.raises(KeyError):
        replay([Free("b")], allocator)


def test_running_out_of_memory_says_what_was_asked_for_and_what_was_there() -> None:
    allocator = CachingAllocator(30 * M)
    allocator.allocate("a", 20 * M)
    with pytest.raises(torch.OutOfMemoryError, match=r"asked for 12,582,912 bytes beside 20,971,520 .* 31,457,280"):
        allocator.allocate("b", 11 * M)
    allocator.free("a")
    allocator.allocate("b", 11 * M)  # its name was not taken
    assert allocator.allocated_bytes == 11 * M
