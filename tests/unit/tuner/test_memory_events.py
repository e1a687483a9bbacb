"""What lives at the moments of a trace, against tensors that are made and dropped."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hf_accum.device.live_bytes import LiveBytes
from hf_accum.tuner.memory_events import MemoryEvents, Recorder


def test_by_hand() -> None:
    events = MemoryEvents((8, 0, 4, 0, 2, 0), (4, 6, 6, 6, 5, 6), forward_end=2, training_end=4)
    assert events.parts == [range(2), range(2, 4), range(4, 6)]
    assert events.live_bytes(100) == [[108], [112], [104]]
    less = MemoryEvents((8, 0), (2, 2), 1, 2, others_freed=((1, 50),))
    assert less.live_bytes(100) == [[], [58], []]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 50)), max_size=30), st.integers(0, 4))
def test_any_sequence_has_the_timeline_that_was_counted(steps: list[tuple[int, int]], held: int) -> None:
    """Each of five places holds one tensor, which the next one there replaces; some are there before."""
    places: dict[int, Tensor] = {place: torch.empty(3) for place in range(held)}
    recorder = Recorder()
    with LiveBytes(held=list(places.values()), record=recorder) as live:
        before = live.current_bytes
        recorder.take()
        half = 0
        for number, (place, size) in enumerate(steps):
            if number == len(steps) // 2:
                half = recorder.num_events
            places.pop(place, None)
            if size % 3:
                places[place] = torch.empty(size)
    total = recorder.num_events
    events = recorder.take(half, total)
    assert [moment for part in events.live_bytes(before) for moment in part] == live.timeline
    assert all(event < freed_at <= total for event, freed_at in enumerate(events.freed_at))
    assert recorder.num_events == 0


def test_what_is_left_out_is_freed_once() -> None:
    recorder = Recorder()
    kept, other = torch.empty(5), torch.empty(7)
    with LiveBytes(held=[kept, other], record=recorder) as live:
        live.leave_out([kept, kept[2:]])
        assert (live.current_bytes, live.peak_bytes) == (28, 28)
        assert torch.add(kept, 1).shape == (5,)
        at = live.current_bytes
        del kept
        assert live.current_bytes == at
    events = recorder.take()
    sizes = list(events.num_bytes)
    assert sizes[:2] == [20, 28]
    assert events.freed_at[0] < events.freed_at[1] == len(sizes)
    assert events.others_freed == ()
