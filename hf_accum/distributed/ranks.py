"""The processes of a run, and what they say to each other on the CPU."""

import pickle
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

from hf_accum.errors import RankFailed, first_line

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")

TIMEOUT_MINUTES = 10.0
"""For which a rank waits for another one: torch's own for GPUs."""

_LOST = (
    *("closed by peer", "reset by peer", "broken pipe", "connection refused", "timed out", "timeout"),
    *("remote process exited", "communicator was aborted"),  # NCCL's
)


class Ranks(Protocol):
    """What the stream, the evaluation and the log need of the processes."""

    @property
    def index(self) -> int:
        """This process's rank."""
        ...

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    def gather(self, numbers: Sequence[int]) -> list[list[int]]:
        """Every rank's signed 64-bit numbers, in order of rank. All ranks pass equally many."""
        ...

    def gather_objects(self, value: T) -> list[T]:
        """Every rank's value, in order of rank."""
        ...

    def exchange(self, outgoing: Mapping[int, T], sources: Sequence[int]) -> dict[int, T]:
        """Send a value to some ranks, and return those from the `sources`, which are the ranks that send one here."""
        ...

    def new_group(self) -> "Ranks":
        """The same ranks for talk of another thread, so that neither waits for the other's. A collective."""
        ...


@contextmanager
def talking() -> Iterator[None]:
    """Around what talks to the other ranks: one that has gone, or does not answer in time, is told in plain words.

    Raises:
        RankFailed: instead of the errors that gloo and NCCL have for it.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(text in str(error).lower() for text in _LOST):
            raise
        raise RankFailed(
            "another rank has ended, or has not answered for longer than `rank_timeout_minutes`: see its own error, "
            f"or what the launcher says of it ({first_line(error)})"
        ) from error


class OneRank:
    """A run of a single process."""

    index = 0
    count = 1

    def gather(self, numbers: Sequence[int]) -> list[list[int]]:
        """This rank's numbers."""
        return [list(numbers)]

    def gather_objects(self, value: T) -> list[T]:
        """This rank's value."""
        return [value]

    def exchange(self, outgoing: Mapping[int, T], sources: Sequence[int]) -> dict[int, T]:
        """There is nobody to exchange with."""
        return {}

    def new_group(self) -> "OneRank":
        """This rank."""
        return self


class ProcessGroupRanks:
    """Ranks of `torch.distributed`, over a gloo group of their own.

    On the CPU, so that agreeing on a window never waits for a device, and apart from the group of the
    gradients, so that neither waits for the other's order.
    """

    def __init__(self, timeout: timedelta) -> None:
        self.index = dist.get_rank()
        self.count = dist.get_world_size()
        self._timeout = timeout
        self._group: Any = dist.new_group(backend="gloo", timeout=timeout)

    def gather(self, numbers: Sequence[int]) -> list[list[int]]:
        """One all-gather of int64."""
        mine = torch.tensor(numbers, dtype=torch.int64)
        everyone = [torch.empty_like(mine) for _ in range(self.count)]
        with talking():
            dist.all_gather(everyone, mine, group=self._group)
        return [tensor.tolist() for tensor in everyone]

    def gather_objects(self, value: T) -> list[T]:
        """One all-gather of pickled values of this run's own processes."""
        values: list[Any] = [None] * self.count
        with talking():
            dist.all_gather_object(values, value, group=self._group)
        return values

    def exchange(self, outgoing: Mapping[int, T], sources: Sequence[int]) -> dict[int, T]:
        """Point to point: pickled values of this run's own processes, each after its number of bytes."""
        with talking():
            return self._exchange(outgoing, sources)

    def _exchange(self, outgoing: Mapping[int, T], sources: Sequence[int]) -> dict[int, T]:
        sent = []
        for rank, value in outgoing.items():
            payload = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
            parts = (torch.tensor([len(payload)]), payload)
            sent += [(part, dist.isend(part, rank, group=self._group)) for part in parts]
        incoming: dict[int, T] = {}
        for rank in sources:
            size = torch.empty(1, dtype=torch.int64)
            dist.recv(size, rank, group=self._group)
            payload = torch.empty(int(size), dtype=torch.uint8)
            dist.recv(payload, rank, group=self._group)
            incoming[rank] = pickle.loads(payload.numpy().tobytes())
        for _, work in sent:
            if work is not None:
                work.wait()
        return incoming

    def new_group(self) -> "ProcessGroupRanks":
        """Another group."""
        return ProcessGroupRanks(self._timeout)


_shared: "WeakKeyDictionary[Accelerator, Ranks]" = WeakKeyDictionary()


def shared_ranks_of(accelerator: "Accelerator") -> Ranks:
    """The ranks of an accelerator, made once for all that talks in its main thread. A collective at first."""
    if accelerator not in _shared:
        _shared[accelerator] = ranks_of(accelerator)
    return _shared[accelerator]


def ranks_of(accelerator: "Accelerator", timeout_minutes: float = TIMEOUT_MINUTES) -> Ranks:
    """The ranks of a started run. A collective: call it once, on every rank."""
    several = accelerator.num_processes > 1
    return ProcessGroupRanks(timedelta(minutes=timeout_minutes)) if several else OneRank()


def float_bits(number: float) -> int:
    """A float64 as a signed 64-bit number, for `Ranks.gather`."""
    return struct.unpack("<q", struct.pack("<d", number))[0]


def bits_float(bits: int) -> float:
    """The inverse of `float_bits`."""
    return struct.unpack("<d", struct.pack("<q", bits))[0]
