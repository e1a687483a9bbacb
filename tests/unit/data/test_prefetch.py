"""The background iterator: the same items, a bounded number ahead, errors raised here, no thread left."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_accum.data.prefetch import prefetched


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "hf-accum-prefetch"]


def wait_until(holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + 5
    while not holds() and time.monotonic() < end:
        time.sleep(0.001)
    return holds()


@given(items=st.lists(st.none() | st.integers() | st.text()), num_items=st.integers(1, 5))
def test_all_items_in_their_order(items: list[object], num_items: int) -> None:
    assert list(prefetched(lambda: iter(items), num_items)) == items
    assert not prefetch_threads()


@pytest.mark.parametrize("num_items", [1, 3])
def test_it_runs_ahead_but_no_further_than_asked(num_items: int) -> None:
    made: list[int] = []

    def make() -> Iterator[int]:
        for i in range(100):
            made.append(i)
            yield i

    items = prefetched(make, num_items)
    assert made == []  # nothing before the first is asked for
    for taken in range(1, 20):
        assert next(items) == taken - 1
        # In the queue, and one more that waits for its place there.
        assert wait_until(lambda taken=taken: len(made) == taken + num_items + 1)
        time.sleep(0.002)
        assert len(made) == taken + num_items + 1
    items.close()  # type: ignore[attr-defined]


def test_items_are_made_in_another_thread() -> None:
    def make() -> Iterator[threading.Thread]:
        yield threading.current_thread()

    (made_by,) = prefetched(make, 1)
    assert made_by is not threading.current_thread()
    assert made_by.daemon  # it does not keep a run alive that ends by an error


@pytest.mark.parametrize("error", [ValueError("row 7"), KeyboardInterrupt(), StopIteration()])
def test_an_error_comes_after_the_items_before_it(error: BaseException) -> None:
    def make() -> Iterator[int]:
        yield 1
        yield 2
        raise error

    items = prefetched(make, 4)
    assert [next(items), next(items)] == [1, 2]
    # A generator turns a StopIteration of its own into a RuntimeError.
    with pytest.raises(RuntimeError if isinstance(error, StopIteration) else type(error)) as raised:
        next(items)
    assert error in (raised.value, raised.value.__cause__)
    assert not prefetch_threads()
    assert next(items, None) is None


def test_an_error_before_the_first_item() -> None:
    def make() -> Iterator[int]:
        raise ValueError("no such file")

    with pytest.raises(ValueError, match="no such file"):
        next(prefetched(make, 1))


@pytest.mark.parametrize("taken", [1, 3])
def test_closing_ends_the_thread_even_of_an_endless_iterator(taken: int) -> None:
    made: list[int] = []

    def make() -> Iterator[int]:
        while True:
            made.append(len(made))
            yield made[-1]

    items = prefetched(make, 2)
    for _ in range(taken):
        next(items)
    assert len(prefetch_threads()) == 1
    items.close()  # type: ignore[attr-defined]
    assert not prefetch_threads()
    assert len(made) <= taken + 4


def test_a_loop_that_is_left_ends_the_thread() -> None:
    def loop() -> int:
        for item in prefetched(lambda: iter(range(10**9)), 2):
            if item == 5:
                return item
        return -1

    assert loop() == 5
    assert wait_until(lambda: not prefetch_threads())
