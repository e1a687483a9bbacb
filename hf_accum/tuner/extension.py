"""What a model of many blocks allocates, from what the same model with two, three and four of them does.

With one block more, each part of a trace (forward, backward, evaluation) has some events more, in one place. The
event at which memory is freed moves with them: in the trace of a model with d blocks more it is a + b * d, and for
the events of a further block, the c-th of them, a + b * d + c * e. Three traces give these numbers, and with them the
trace at any depth. What does not follow the rule is refused, to be traced whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hf_accum.tuner.memory_events import MemoryEvents

_BACKWARD = 1  # of the parts; in it the last blocks come first


class NotRegular(ValueError):
    """One block more changes something else too."""


@dataclass(frozen=True)
class _Insertion:
    """The events of each further block in one part: `number` of them, before index `place` of the short trace.

    They are those that the short trace has for the block beside it, from index `source` on. Each is freed where that
    one is, and so much later: `later` + `by_depth` * d + `by_copy` * c.
    """

    place: int
    number: int
    source: int
    later: np.ndarray
    by_depth: np.ndarray
    by_copy: np.ndarray


@dataclass(frozen=True)
class Extension:
    """How the trace of a short model becomes that of a longer one."""

    short: MemoryEvents
    insertions: tuple[_Insertion, ...]
    by_depth: np.ndarray
    """Of each event of the short trace: how much later it is freed with each block more."""

    @staticmethod
    def of(short: MemoryEvents, longer: MemoryEvents, longest: MemoryEvents) -> "Extension":
        """Learn it from a trace, from one with a block more, and one with two more.

        Raises:
            NotRegular: if they do not follow the rule.
        """
        traces = (short, longer, longest)
        _require(not any(events.others_freed for events in traces))
        numbers = [len(y) - len(x) for x, y in zip(short.parts, longer.parts, strict=True)]
        insertions: list[_Insertion] = []
        of_parts: list[np.ndarray] = []
        for part in range(len(numbers)):
            insertion, by_depth = _learn(traces, part, numbers)
            insertions.append(insertion)
            of_parts.append(by_depth)
        by_depth = np.concatenate(of_parts)
        # Away from the blocks beside the places, whatever frees is what freed before.
        freed_at = np.asarray(short.freed_at)
        shift = _moved(freed_at, [(one.place + 1, one.number) for one in insertions], 1)
        elsewhere = np.ones(len(freed_at), dtype=bool)
        for same in _beside(short, insertions):
            elsewhere[same.start : same.stop] = False
        _require(bool((by_depth == shift)[elsewhere & (np.asarray(short.num_bytes) > 0)].all()))
        return Extension(short, tuple(insertions), by_depth)

    def extend(self, events: MemoryEvents, depth: int) -> MemoryEvents:
        """A trace of the short model at another size, as that of a model with `depth` blocks more.

        Around the blocks it may have other events than those that this was learned from: a loss in more chunks.

        Raises:
            NotRegular: if the blocks themselves have others.
        """
        _require(not events.others_freed)
        by = events.training_end - self.short.training_end  # of the backward's end, and of evaluation's begin
        shifts = (0, by, by)
        self._require_alike(events, shifts)
        num_bytes, freed_at = np.asarray(events.num_bytes), np.asarray(events.freed_at)
        places = [(one.place + by, one.number) for one, by in zip(self.insertions, shifts, strict=True)]
        later = _moved(freed_at, [(place + 1, number) for place, number in places], depth)
        for same, by in zip(_beside(self.short, self.insertions), shifts, strict=True):
            later[same.start + by : same.stop + by] = depth * self.by_depth[same.start : same.stop]
        index = np.arange(len(num_bytes))
        index = index + _moved(index, places, depth)
        total = len(num_bytes) + depth * sum(number for _, number in places)
        long_bytes, long_freed = np.zeros(total, dtype=np.int64), np.zeros(total, dtype=np.int64)
        long_bytes[index], long_freed[index] = num_bytes, freed_at + later
        copies = np.arange(depth)[:, None]
        before = 0
        for one, by, (place, number) in zip(self.insertions, shifts, places, strict=True):
            at = place + before + np.arange(number) + copies * number
            source = slice(one.source + by, one.source + by + number)
            long_bytes[at] = num_bytes[source]
            long_freed[at] = freed_at[source] + one.later + one.by_depth * depth + one.by_copy * copies
            before += depth * number
        long_freed[long_bytes == 0] = total
        ends = [depth * self.insertions[0].number, depth * sum(one.number for one in self.insertions[:2])]
        _require(
            bool((long_freed[long_bytes > 0] > np.flatnonzero(long_bytes)).all() and (long_freed <= total).all())
        )
        return MemoryEvents(
            tuple(long_bytes.tolist()),
            tuple(long_freed.tolist()),
            events.forward_end + ends[0],
            events.training_end + ends[1],
        )

    def _require_alike(self, events: MemoryEvents, shifts: tuple[int, ...]) -> None:
        """The blocks beside the places have to have the same moments and allocations, which are freed alike."""
        sizes, of_short = np.asarray(events.num_bytes), np.asarray(self.short.num_bytes)
        freed, freed_in_short = np.asarray(events.freed_at), np.asarray(self.short.freed_at)
        beside = _beside(self.short, self.insertions)
        first, last = beside[0].stop, beside[_BACKWARD].start  # between them may be other events
        for same, part, by in zip(beside, events.parts, shifts, strict=True):
            _require(part.start <= same.start + by and same.stop + by <= part.stop)
            made = of_short[same.start : same.stop] > 0
            _require(np.array_equal(sizes[same.start + by : same.stop + by] > 0, made))
            there, here = freed_in_short[same.start : same.stop], freed[same.start + by : same.stop + by]
            between = (there > first) & (there < last)
            alike = here == np.where(there <= first, there, there + shifts[_BACKWARD])
            alike[between] = (here[between] >= first) & (here[between] <= last + shifts[_BACKWARD])
            _require(bool(alike[made].all()))


def _beside(short: MemoryEvents, insertions: "tuple[_Insertion, ...] | list[_Insertion]") -> list[range]:
    """The events from the begin of each part through the block beside the place; of the backward up to its end."""
    return [
        range(one.source, part.stop) if number == _BACKWARD else range(part.start, one.source + one.number)
        for number, (one, part) in enumerate(zip(insertions, short.parts, strict=True))
    ]


def _moved(event: np.ndarray, insertions: list[tuple[int, int]], depth: int) -> np.ndarray:
    """By how much events move that are not before a place, where so many are inserted, `depth` times."""
    return np.sum([depth * number * (event >= place) for place, number in insertions], axis=0)


def _learn(traces: tuple[MemoryEvents, ...], part: int, numbers: list[int]) -> tuple[_Insertion, np.ndarray]:
    """A place at which the events of a part are inserted such that what frees them follows the rule.

    Several often give the same sizes. The first ones are best, in the backward the last ones: what lies at the other
    side of the place is then near the loss, and the same for any number of blocks.
    """
    ranges = [events.parts[part] for events in traces]
    number = numbers[part]
    if not any(ranges):  # of forwards alone
        nothing = np.zeros(0, dtype=np.int64)
        return _Insertion(ranges[0].start, 0, ranges[0].start, nothing, nothing, nothing), nothing
    a, b, c = (np.asarray(events.num_bytes[r.start : r.stop]) for events, r in zip(traces, ranges, strict=True))
    freed = [np.asarray(events.freed_at[r.start : r.stop]) for events, r in zip(traces, ranges, strict=True)]
    first_ends, all_ends = sum(numbers[:part]), sum(numbers[: part + 1])
    allowed = {(number, first_ends), (0, all_ends)}
    if part == 0:  # what is kept for the backward of its block, and what that keeps for all
        allowed |= {(-numbers[1], sum(numbers[:2])), (0, sum(numbers[:2]))}
    is_made = a > 0
    for place in _candidates(a, b, c, number, latest=part == _BACKWARD):
        source = place - number if part == _BACKWARD else place
        inside = np.arange(number)
        in_a = np.arange(len(a))
        in_b = in_a + _moved(in_a, [(place, number)], 1)
        in_c = in_a + _moved(in_a, [(place, number)], 2)
        by_depth = freed[1][in_b] - freed[0]
        if not ((freed[2][in_c] - freed[1][in_b] == by_depth) | ~is_made).all():
            continue
        of_depth = freed[2][place + inside] - freed[1][place + inside]
        of_copy = freed[2][place + number + inside] - freed[2][place + inside]
        later = freed[1][place + inside] - of_depth - freed[0][source + inside]
        made = is_made[source + inside]
        of_depth, of_copy, later = (np.where(made, values, 0) for values in (of_depth, of_copy, later))
        if set(zip(of_copy[made].tolist(), of_depth[made].tolist(), strict=True)) <= allowed:
            start = ranges[0].start
            insertion = _Insertion(start + place, number, start + source, later, of_depth, of_copy)
            return insertion, np.where(is_made, by_depth, 0)
    raise NotRegular("no place of a block whose memory is freed evenly")


def _candidates(a: np.ndarray, b: np.ndarray, c: np.ndarray, number: int, *, latest: bool) -> Iterator[int]:
    """Places at which one of the blocks of `a` is inserted to give `b`, and twice to give `c`.

    It is the block after the place, or with `latest` that before it.
    """
    _require(number > 0 and len(c) == len(a) + 2 * number)
    lowest, highest = len(a) - _num_equal(a[::-1], b[::-1]), _num_equal(a, b)
    places = range(max(lowest, number), highest + 1) if latest else range(lowest, min(highest, len(a) - number) + 1)
    for place in reversed(places) if latest else places:
        block = a[place - number : place] if latest else a[place : place + number]
        if np.array_equal(b[place : place + number], block) and np.array_equal(
            c, np.concatenate([a[:place], block, block, a[place:]])
        ):
            yield place


def _num_equal(a: np.ndarray, b: np.ndarray) -> int:
    """How many first ones are the same."""
    shorter = min(len(a), len(b))
    differ = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(differ[0]) if len(differ) else shorter


def _require(holds: bool) -> None:
    if not holds:
        raise NotRegular("its blocks do not follow each other evenly")
