"""How far a stream is, and what it used and left out."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hf_accum.data.shuffling import START, Place
from hf_accum.distributed.ranks import Ranks


@dataclass
class StreamCounts:
    """What a stream used, left out or cut so far: over all ranks, but for `bad_rows`, which this rank read."""

    bad_rows: Counter[str] = field(default_factory=Counter)
    num_examples: int = 0
    num_truncated_examples: int = 0
    num_truncated_tokens: int = 0
    num_weightless_windows: int = 0

    def copy(self) -> "StreamCounts":
        """What they are now."""
        return replace(self, bad_rows=Counter(self.bad_rows))


@dataclass(frozen=True)
class StreamState:
    """How far a stream is on this rank: behind the window of a step, which ended at a place in the data."""

    step: int = 0
    place: Place = START
    counts: StreamCounts = field(default_factory=StreamCounts)

    def as_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        counts = vars(self.counts) | {"bad_rows": dict(self.counts.bad_rows)}
        return {"step": self.step, "place": self.place.as_json(), "counts": counts}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "StreamState":
        """The inverse of `as_json`.

        Raises:
            KeyError, TypeError, ValueError: if the value is no such thing.
        """
        counts = StreamCounts(**{**value["counts"], "bad_rows": Counter(value["counts"]["bad_rows"])})
        return StreamState(int(value["step"]), Place.from_json(value["place"]), counts)


def gathered(state: StreamState, ranks: Ranks) -> dict[str, Any]:
    """The states of all ranks, as JSON has them. A collective."""
    return {"ranks": ranks.gather_objects(state.as_json())}


def of_this_rank(states: Mapping[str, Any], ranks: Ranks, *, new_order: bool = False) -> StreamState:
    """Where this rank goes on, by what `gathered` gave.

    On another number of ranks, with one common order, where rank 0 was; in a `new_order`, in which places mean
    nothing, at the start of the pass.

    Raises:
        KeyError, TypeError, ValueError: if these are no states.
    """
    known = [StreamState.from_json(value) for value in states["ranks"]]
    first = known[0]
    if not new_order:
        return known[ranks.index] if len(known) == ranks.count else first
    counts = first.counts.copy()
    if ranks.index:
        counts.bad_rows.clear()  # they are summed over the ranks
    return StreamState(first.step, Place(first.place.epoch), counts)
