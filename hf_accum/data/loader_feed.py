"""The batches of one pass over a loader, and which of them are this rank's."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from hf_accum.accumulation.batch_parts import leaves, num_rows, rows_of
from hf_accum.distributed.ranks import Ranks

_END = object()
_NUM_SAMPLED = 256  # numbers of a tensor by which ranks see that they read the same


@dataclass(frozen=True)
class Rows:
    """A batch, or some rows of one, and its number in the pass."""

    batch: Any
    number: int
    start: int = 0

    @property
    def count(self) -> int:
        """Of examples."""
        return num_rows(self.batch)

    def split(self, at: int) -> "tuple[Rows, Rows]":
        """The first `at` rows, and the others."""
        return (
            Rows(rows_of(self.batch, 0, at), self.number, self.start),
            Rows(rows_of(self.batch, at, self.count), self.number, self.start + at),
        )


class Feed:
    """The batches of a pass. Ranks that all read the same are `dealt` their parts; of their own they take all."""

    def __init__(self, batches: Iterator[Any], dealt: Ranks | None) -> None:
        self._batches = batches
        self._dealt = dealt
        self._rest: Rows | None = None
        self._num_read = 0
        self.first: Any = None
        """The first batch that was read, of any rank."""
        self.seen = 0
        """A checksum of all batches that were read, where they are dealt."""
        self.passed = 0
        """A checksum of all batches that were read, by what is the same on any machine and device."""

    def batches(self, count: int) -> list[Rows]:
        """So many batches for this rank, or those that are left; dealt in turn."""
        if self._dealt is None:
            return self._read(count)
        return self._read(count * self._dealt.count)[self._dealt.index :: self._dealt.count]

    def rows(self, count: int) -> list[Rows]:
        """Of so many rows over all ranks this rank's, as even as can be, or of those that are left.

        Where the ranks are dealt their parts, which rows these are does not depend on their number.
        """
        if self._dealt is None:
            return self._read_rows(count)
        taken = self._read_rows(count)
        total = sum(one.count for one in taken)
        start, stop = (total * place // self._dealt.count for place in (self._dealt.index, self._dealt.index + 1))
        return _between(taken, start, stop)

    def _read_rows(self, count: int) -> list[Rows]:
        taken: list[Rows] = []
        while count:
            one, self._rest = self._rest, None
            if one is None:
                read = self._read(1)
                if not read:
                    break
                (one,) = read
            if one.count > count:
                one, self._rest = one.split(count)
            count -= one.count
            taken.append(one)
        return taken

    def _read(self, count: int) -> list[Rows]:
        read: list[Rows] = []
        while len(read) < count:
            batch = next(self._batches, _END)
            if batch is _END:
                break
            read.append(Rows(batch, self._num_read))
            self._num_read += 1
            self.passed = crc32(_sample(batch, whole=False), self.passed)
            if self._dealt is not None:
                self.seen = crc32(_sample(batch), self.seen)
        if read and read[0].number == 0:
            self.first = read[0].batch
        return read


def _between(rows: Sequence[Rows], start: int, stop: int) -> list[Rows]:
    found: list[Rows] = []
    at = 0
    for one in rows:
        first, last = max(start - at, 0), min(stop - at, one.count)
        if first < last:
            found.append(Rows(rows_of(one.batch, first, last), one.number, one.start + first))
        at += one.count
    return found


def _sample(batch: Any, whole: bool = True) -> bytes:
    """The shapes of a batch's tensors, the first numbers of those on the CPU; if not `whole`, of integers alone."""
    said: list[bytes] = []
    for name, tensor in leaves(batch):
        said.append(f"{name}{tuple(tensor.shape)}".encode())
        if tensor.device.type == "cpu" and (whole or not tensor.is_floating_point()):
            said.append(repr(tensor.flatten()[:_NUM_SAMPLED].tolist()).encode())
    return b"".join(said)
