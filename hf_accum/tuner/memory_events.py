"""What a trace allocates, in the order of time, and how long each of it lives."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True)
class MemoryEvents:
    """Those of one micro-batch: its forward, its backward, and a forward without gradients (evaluation).

    Each of `num_bytes` is an event: so many bytes are allocated; 0 is a moment, at which what lives counts.
    `freed_at` says of an allocation which event is the first one after its end: their number, if none is.
    """

    num_bytes: tuple[int, ...]
    freed_at: tuple[int, ...]
    forward_end: int = 0
    """The first event after the forward."""
    training_end: int = 0
    """The first event of evaluation."""
    others_freed: tuple[tuple[int, int], ...] = ()
    """What was there before and is freed: the first event after that, and the bytes."""

    @property
    def parts(self) -> list[range]:
        """Events of the forward, the backward and the evaluation."""
        return [range(*ends) for ends in pairwise((0, self.forward_end, self.training_end, len(self.num_bytes)))]

    @property
    def of_training(self) -> "MemoryEvents":
        """Those of the forward and the backward alone."""
        end = self.training_end
        freed_at = tuple(min(freed, end) for freed in self.freed_at[:end])
        others = tuple((event, freed) for event, freed in self.others_freed if event <= end)
        return MemoryEvents(self.num_bytes[:end], freed_at, self.forward_end, end, others)

    def live_bytes(self, start_bytes: int) -> list[list[int]]:
        """What lives at the moments of each part, where `start_bytes` do at its begin."""
        num_bytes = np.asarray(self.num_bytes, dtype=np.int64)
        change = np.append(num_bytes, 0)
        np.subtract.at(change, np.asarray(self.freed_at, dtype=np.int64), num_bytes)
        for event, freed in self.others_freed:
            change[event] -= freed
        live = start_bytes + np.cumsum(change)
        return [live[part.start : part.stop][num_bytes[part.start : part.stop] == 0].tolist() for part in self.parts]


class Recorder:
    """Takes down what `LiveBytes` tells."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._num_bytes: list[int] = []
        self._freed_at: dict[int, int] = {}
        self._places: dict[int, int] = {}
        self._others_freed: list[tuple[int, int]] = []

    def __call__(self, number: int, num_bytes: int) -> None:
        """A storage by its number, with its bytes; negative once it is gone. Without bytes: a moment."""
        if num_bytes >= 0:
            if num_bytes > 0:
                self._places[number] = len(self._num_bytes)
            self._num_bytes.append(num_bytes)
        elif number in self._places:
            self._freed_at[self._places.pop(number)] = len(self._num_bytes)
        else:
            self._others_freed.append((len(self._num_bytes), -num_bytes))

    @property
    def num_events(self) -> int:
        """Since the last ones were taken."""
        return len(self._num_bytes)

    def take(self, forward_end: int = 0, training_end: int = 0) -> MemoryEvents:
        """What there is, to begin anew."""
        total = len(self._num_bytes)
        freed_at = tuple(self._freed_at.get(event, total) for event in range(total))
        events = MemoryEvents(tuple(self._num_bytes), freed_at, forward_end, training_end, tuple(self._others_freed))
        self._clear()
        return events
