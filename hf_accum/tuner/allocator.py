"""What PyTorch's caching allocator reserves on a CUDA device for a sequence of allocations and frees.

A model of its rules for one stream with default settings (c10/cuda/CUDACachingAllocator.cpp of torch 2.10 to 2.13);
its blocks are numbers. What is *reserved* counts against a card. What is *allocated*, a part of it, is handed out.

- Sizes are rounded up to 512 bytes. Up to 1 MiB they come from one pool, larger ones from another.
- Of the pool's free blocks that are large enough the smallest is taken, of equal ones the one at the lowest address.
  What is left of it stays free, if that is 512 bytes or more; in the large pool, if it is more than 1 MiB.
- Where there is none, a segment is asked of the device: 2 MiB in the small pool; in the large one 20 MiB for less
  than 10 MiB, and else the size, rounded up to 2 MiB. Where it would go over the limit, all segments that are wholly
  free are given back, and it is asked for once more: a retry. Otherwise segments are kept.
- A freed block is joined with its free neighbours in the segment.

With expandable segments each pool is one range of addresses. Memory is mapped to it in pages (2 MiB, or 20 MiB in the
large pool), at the lowest addresses where the block finds room. All that is left of a block stays free. A free block
before unmapped addresses ranks by the size that it can grow to. A retry unmaps the pages that are wholly free.

Not modelled: other streams, pools of CUDA graphs, settings as max_split_size_mb, the addresses that a driver chooses
(here new segments have ever higher ones), and that an expandable segment's addresses end somewhere.
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from hf_accum.tuner.block_pool import LARGE_SEGMENT, LARGEST_SMALL, ROUNDED_TO, SMALL_SEGMENT, Block, BlockPool

_SEGMENT_OF_ITS_OWN = 10 * 2**20  # for sizes from here on
_OWN_ROUNDED_TO = 2 * 2**20
_UNLIMITED = 2**62  # bytes


@dataclass(frozen=True, slots=True)
class Allocate:
    """`num_bytes` are asked for; `key` is their name until they are freed."""

    key: Hashable
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Free:
    """What was allocated by this name is given back."""

    key: Hashable


@dataclass(frozen=True, slots=True)
class BlockState:
    """A block of a segment. Addresses are those of its pool, and begin at 0."""

    is_small: bool
    address: int
    num_bytes: int
    is_free: bool


class CachingAllocator:
    """The state of the allocator of one device, at first with nothing reserved.

    `limit_bytes` are what the process may reserve (torch.cuda.set_per_process_memory_fraction), `device_bytes` what
    the device has: these are never exceeded. Without expandable segments both mean the same. With them the limit is
    held against the segment that would be asked for without, whatever is mapped then: less than 20 MiB may be
    reserved above it.
    """

    def __init__(
        self, limit_bytes: int | None = None, *, device_bytes: int | None = None, expandable_segments: bool = False
    ) -> None:
        self.limit_bytes = _UNLIMITED if limit_bytes is None else limit_bytes
        self.device_bytes = _UNLIMITED if device_bytes is None else device_bytes
        self.expandable_segments = expandable_segments
        self.allocated_bytes = 0
        """Of the blocks that are handed out: what was asked for and more."""
        self.reserved_bytes = 0
        self.peak_reserved_bytes = 0
        self.num_retries = 0
        """torch's num_alloc_retries: also those that failed."""
        self._pools = [BlockPool(is_small, expandable_segments) for is_small in (False, True)]
        self._live: dict[Hashable, Block | None] = {}

    def allocate(self, key: Hashable, num_bytes: int) -> None:
        """Hand out a block of at least so many bytes, to be freed by its key.

        Raises:
            torch.OutOfMemoryError: if the retry fails too. All else stays usable, and what was free is given back.
        """
        assert num_bytes >= 0, f"{num_bytes} bytes"
        assert key not in self._live, f"{key!r} is alive"
        self._live[key] = self._hand_out(num_bytes) if num_bytes else None  # no elements, no memory

    def free(self, key: Hashable) -> None:
        """Take back what was allocated by this key.

        Raises:
            KeyError: if nothing was, or it is free already.
        """
        block = self._live.pop(key)
        if block is not None:
            self.allocated_bytes -= block.size
            block.is_free = True
            block.pool.add_joined(block)

    def empty_cache(self) -> None:
        """Give back all segments that are wholly free; of expandable ones, all such pages."""
        for pool in self._pools:
            for _, _, block in list(pool.free):
                if self.expandable_segments:
                    self._unmap(block)
                elif block.before is None and block.after is None:
                    pool.remove(block)
                    self.reserved_bytes -= block.size

    def snapshot(self) -> list[list[BlockState]]:
        """The blocks of each segment by address; of expandable ones, of each stretch that is mapped."""
        blocks = [block for pool in self._pools for _, _, block in pool.free]
        blocks += [block for block in self._live.values() if block is not None]
        segments: list[list[BlockState]] = []
        for block in sorted(blocks, key=lambda block: (block.pool.is_small, block.address)):
            if block.before is None or not block.before.is_mapped:
                segments.append([])
            segments[-1].append(BlockState(block.pool.is_small, block.address, block.size, block.is_free))
        return segments

    def _hand_out(self, num_bytes: int) -> Block:
        size = _round_up(num_bytes, ROUNDED_TO)
        pool = self._pools[size <= LARGEST_SMALL]
        block = pool.best_fit(size) or self._ask_device(pool, size)
        if block is None:
            self.empty_cache()
            self.num_retries += 1
            block = self._ask_device(pool, size)
        if block is None:
            import torch

            raise torch.OutOfMemoryError(
                f"modelled device out of memory. It is asked for {_segment_bytes(size):,} bytes beside "
                f"{self.reserved_bytes:,} reserved ones, {self.allocated_bytes:,} of them allocated; at most "
                f"{min(self.limit_bytes, self.device_bytes):,} can be"
            )
        if block.size - size >= pool.least_rest:
            pool.add(block.cut(size))
        block.is_free = False
        self.allocated_bytes += block.size
        return block

    def _ask_device(self, pool: BlockPool, size: int) -> Block | None:
        num_bytes = _segment_bytes(size)
        if self.reserved_bytes + num_bytes > self.limit_bytes:
            return None
        if self.expandable_segments:
            return self._map(pool, size)
        if not self._reserve(num_bytes):
            return None
        pool.end += num_bytes
        return Block(pool, pool.end - num_bytes, num_bytes)

    def _map(self, pool: BlockPool, size: int) -> Block | None:
        """Map what lacks of a block of `size` bytes. Where the device is full half-way, what was mapped stays."""
        block = pool.lowest_room(size)
        end = block.address + size
        while not block.is_mapped or block.address + block.size < end:
            if block.is_mapped:
                assert block.after is not None
                block = block.after
            num_bytes = min(block.size, _round_up(end - block.address, pool.page))
            if not self._reserve(num_bytes):
                return None
            pool.remove(block)
            if num_bytes < block.size:
                pool.add(block.cut(num_bytes))
            block.is_mapped = True
            pool.add_joined(block)
        pool.remove(block)
        return block

    def _unmap(self, block: Block) -> None:
        pool = block.pool
        begin = _round_up(block.address, pool.page)
        end = (block.address + block.size) // pool.page * pool.page
        if begin >= end:
            return
        pool.remove(block)
        if end < block.address + block.size:
            pool.add(block.cut(end - block.address))
        if begin > block.address:
            first, block = block, block.cut(begin - block.address)
            pool.add(first)
        block.is_mapped = False
        pool.add_joined(block)
        self.reserved_bytes -= end - begin

    def _reserve(self, num_bytes: int) -> bool:
        if self.reserved_bytes + num_bytes > self.device_bytes:
            return False
        self.reserved_bytes += num_bytes
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)
        return True


def replay(events: Iterable[Allocate | Free], allocator: CachingAllocator) -> list[int]:
    """Run a sequence on an allocator, after what ran on it before. Returns the reserved bytes after each event.

    Raises:
        KeyError, torch.OutOfMemoryError: as `CachingAllocator.free` and `allocate`.
    """
    reserved = []
    for event in events:
        if isinstance(event, Allocate):
            allocator.allocate(event.key, event.num_bytes)
        else:
            allocator.free(event.key)
        reserved.append(allocator.reserved_bytes)
    return reserved


def _segment_bytes(size: int) -> int:
    """Of the segment that is asked for where no free block has `size` bytes."""
    if size <= LARGEST_SMALL:
        return SMALL_SEGMENT
    return LARGE_SEGMENT if size < _SEGMENT_OF_ITS_OWN else _round_up(size, _OWN_ROUNDED_TO)


def _round_up(num_bytes: int, multiple_of: int) -> int:
    return -(-num_bytes // multiple_of) * multiple_of
