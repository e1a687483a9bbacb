"""One pool of blocks of PyTorch's caching allocator: which free block is used, how blocks are cut and joined.

The rules, and the allocator that keeps them: `hf_accum.tuner.allocator`.
"""

from bisect import bisect_left, insort

LARGEST_SMALL = 2**20
"""Bytes: what is larger comes from the large pool."""
SMALL_SEGMENT = 2 * 2**20
LARGE_SEGMENT = 20 * 2**20
ROUNDED_TO = 512
ADDRESSES = 2**42 * LARGE_SEGMENT
"""Of an expandable segment: more than are ever mapped, and whole pages."""


class Block:
    """A piece of a segment, between its neighbours there: handed out, free, or (not `is_mapped`) only addresses."""

    __slots__ = ("address", "after", "before", "is_free", "is_mapped", "pool", "size")

    def __init__(self, pool: "BlockPool", address: int, size: int, is_mapped: bool = True) -> None:
        self.pool = pool
        self.address = address
        self.size = size
        self.is_mapped = is_mapped
        self.is_free = True
        self.before: Block | None = None
        self.after: Block | None = None

    @property
    def room(self) -> int:
        """Its size, and that of the addresses behind it that it can grow into."""
        after = self.after
        return self.size if after is None or after.is_mapped else self.size + after.size

    def cut(self, size: int) -> "Block":
        """Keep the first `size` bytes. Returns the rest, in the same state, in no list of the pool."""
        rest = Block(self.pool, self.address + size, self.size - size, self.is_mapped)
        _link(rest, self.after)
        _link(self, rest)
        self.size = size
        return rest

    def join(self, neighbour: "Block") -> None:
        """Take in the block before or after this one."""
        if neighbour is self.before:
            self.address = neighbour.address
            _link(neighbour.before, self)
        else:
            _link(self, neighbour.after)
        self.size += neighbour.size


def _link(before: Block | None, after: Block | None) -> None:
    if before is not None:
        before.after = after
    if after is not None:
        after.before = before


class BlockPool:
    """The blocks of one pool that are not handed out: free ones by size and address, unmapped ones by address."""

    def __init__(self, is_small: bool, expandable: bool) -> None:
        self.is_small = is_small
        self.expandable = expandable
        self.page = SMALL_SEGMENT if is_small else LARGE_SEGMENT
        self.least_rest = ROUNDED_TO if is_small or expandable else LARGEST_SMALL + 1
        self.end = 0  # of the addresses of its segments
        self.free: list[tuple[int, int, Block]] = []
        self.unmapped: list[tuple[int, int, Block]] = []
        if expandable:
            self.add(Block(self, 0, ADDRESSES, is_mapped=False))

    def add(self, block: Block) -> None:
        """Add a block that is not handed out. It may not change while it is here, but for its neighbours."""
        if block.is_mapped:
            insort(self.free, (block.size, block.address, block))
        else:
            insort(self.unmapped, (0, block.address, block))

    def remove(self, block: Block) -> None:
        """Take out a block that was added."""
        if block.is_mapped:
            del self.free[bisect_left(self.free, (block.size, block.address))]
        else:
            del self.unmapped[bisect_left(self.unmapped, (0, block.address))]

    def add_joined(self, block: Block) -> None:
        """Add a block, joined with the neighbours that are in the same state."""
        for neighbour in (block.before, block.after):
            if neighbour is not None and neighbour.is_free and neighbour.is_mapped == block.is_mapped:
                self.remove(neighbour)
                block.join(neighbour)
        self.add(block)

    def best_fit(self, size: int) -> Block | None:
        """Take out the free block that is used for `size` bytes, if there is one."""
        free = self.free
        i = bisect_left(free, (size,))
        if i == len(free):
            return None
        if self.expandable:
            while i + 1 < len(free) and free[i + 1][2].room < free[i][2].room:
                i += 1
        return free.pop(i)[2]

    def lowest_room(self, size: int) -> Block:
        """Where mapping for `size` bytes begins: unmapped addresses, or a free block before them."""
        for _, _, unmapped in self.unmapped:
            before = unmapped.before
            start = before if before is not None and before.is_free else unmapped
            room, block = 0, start
            while room < size and block is not None and block.is_free:
                room += block.size
                block = block.after
            if room >= size:
                return start
        raise AssertionError("addresses do not end")
