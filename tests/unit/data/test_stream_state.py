"""How far a stream is: as JSON and back, and where each rank goes on."""

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from thread_ranks import run_ranks

from hf_accum.data.shuffling import Place
from hf_accum.data.stream_state import StreamCounts, StreamState, gathered, of_this_rank


def state_of(rank: int) -> StreamState:
    counts = StreamCounts(Counter({f"bad on {rank}": 1 + rank}), 20, 3, 14, 1)
    return StreamState(5, Place(2, 3, rank, 7, 4), counts)


def gone_on(num_then: int, num_now: int, **how: Any) -> list[StreamState]:
    (states,) = {json.dumps(state) for state in run_ranks(num_then, lambda r: gathered(state_of(r.index), r))}
    return run_ranks(num_now, lambda ranks: of_this_rank(json.loads(states), ranks, **how))


def test_a_state_comes_back_from_json() -> None:
    state = state_of(1)
    assert StreamState.from_json(json.loads(json.dumps(state.as_json()))) == state


def test_on_as_many_ranks_each_goes_on_where_it_was_and_on_others_all_where_the_first_was() -> None:
    assert gone_on(3, 3) == [state_of(rank) for rank in range(3)]
    assert gone_on(3, 2) == [state_of(0)] * 2


def test_in_a_new_order_the_pass_starts_anew_and_bad_rows_are_counted_once() -> None:
    first, second = gone_on(2, 2, new_order=True)
    assert first == replace(state_of(0), place=Place(2))
    assert (second.place, second.step, second.counts.num_examples) == (Place(2), 5, 20)
    assert not second.counts.bad_rows


@pytest.mark.parametrize("broken", [{}, {"step": 1}, {**state_of(0).as_json(), "place": {"row": -1}}])
def test_what_is_no_state_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        StreamState.from_json(broken)


def test_a_copy_of_counts_does_not_change_with_them() -> None:
    counts = StreamCounts(Counter(a=1))
    copy = counts.copy()
    counts.bad_rows["a"] += 1
    assert copy.bad_rows == {"a": 1}
