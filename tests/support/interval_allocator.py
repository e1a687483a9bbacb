"""The caching allocator once more, to compare with: it keeps only what is reserved and what is handed out.

Free blocks are found anew each time, as what lies between.
"""

from collections.abc import Hashable

MIB = 2**20


class IntervalAllocator:
    """As `hf_accum.tuner.allocator.CachingAllocator`; `allocate` returns whether there was memory."""

    def __init__(self, limit_bytes: int | None, device_bytes: int | None, expandable_segments: bool) -> None:
        self.limit = float("inf") if limit_bytes is None else limit_bytes
        self.device = float("inf") if device_bytes is None else device_bytes
        self.expandable = expandable_segments
        self.reserved: dict[str, list[tuple[int, int]]] = {"small": [], "large": []}
        """Begin and end of each segment; of expandable ones, of each page."""
        self.used: dict[str, dict[Hashable, tuple[int, int]]] = {"small": {}, "large": {}}
        self.next_address = {"small": 0, "large": 0}
        self.num_retries = 0

    @property
    def reserved_bytes(self) -> int:
        return sum(end - begin for spans in self.reserved.values() for begin, end in spans)

    @property
    def allocated_bytes(self) -> int:
        return sum(end - begin for used in self.used.values() for begin, end in used.values())

    def free_spans(self, pool: str) -> list[tuple[int, int]]:
        spans = self.stretches(pool) if self.expandable else self.reserved[pool]
        found = []
        for begin, end in spans:
            at = begin
            for first, last in sorted(self.used[pool].values()):
                if begin <= first < end:
                    found.append((at, first))
                    at = last
            found.append((at, end))
        return [(begin, end) for begin, end in found if begin < end]

    def stretches(self, pool: str) -> list[tuple[int, int]]:
        """Of pages side by side."""
        joined: list[tuple[int, int]] = []
        for begin, end in sorted(self.reserved[pool]):
            if joined and joined[-1][1] == begin:
                joined[-1] = (joined[-1][0], end)
            else:
                joined.append((begin, end))
        return joined

    def gaps(self, pool: str) -> list[tuple[float, float]]:
        """Addresses without memory; the last have no end."""
        edges = [0, *(edge for span in self.stretches(pool) for edge in span), float("inf")]
        return [(edges[i], edges[i + 1]) for i in range(0, len(edges), 2) if edges[i] < edges[i + 1]]

    def allocate(self, key: Hashable, num_bytes: int) -> bool:
        if num_bytes == 0:
            return True
        size = (num_bytes + 511) // 512 * 512
        pool = "small" if size <= MIB else "large"
        place = self.place_in_free(pool, size)
        if place is None:
            place = self.place_in_new(pool, size)
        if place is None:
            self.empty_cache()
            self.num_retries += 1
            place = self.place_in_new(pool, size)
        if place is None:
            return False
        begin, end = place
        rest = end - begin - size
        stays_free = rest > 0 if self.expandable or pool == "small" else rest > MIB
        self.used[pool][key] = (begin, begin + size if stays_free else end)
        return True

    def place_in_free(self, pool: str, size: int) -> tuple[int, int] | None:
        fitting = sorted((e - b, b, e) for b, e in self.free_spans(pool) if e - b >= size)
        if not fitting:
            return None
        chosen = fitting[0]
        if self.expandable:
            growth = {begin: end - begin for begin, end in self.gaps(pool)}
            for other in fitting[1:]:
                if other[0] + growth.get(other[2], 0) >= chosen[0] + growth.get(chosen[2], 0):
                    break
                chosen = other
        return chosen[1:]

    def place_in_new(self, pool: str, size: int) -> tuple[int, int] | None:
        segment = 2 * MIB if pool == "small" else 20 * MIB if size < 10 * MIB else -(-size // (2 * MIB)) * 2 * MIB
        if self.reserved_bytes + segment > self.limit:
            return None
        if not self.expandable:
            if self.reserved_bytes + segment > self.device:
                return None
            begin = self.next_address[pool]
            self.next_address[pool] += segment
            self.reserved[pool].append((begin, begin + segment))
            return begin, begin + segment
        begin = self.lowest_place(pool, size)
        page = 2 * MIB if pool == "small" else 20 * MIB
        for first, last in self.gaps(pool):  # each is mapped as a whole or not at all
            missing = [at for at in range(begin // page * page, begin + size, page) if first <= at < last]
            if self.reserved_bytes + len(missing) * page > self.device:
                return None
            self.reserved[pool] += [(at, at + page) for at in missing]
        return next((b, e) for b, e in self.free_spans(pool) if b == begin)

    def lowest_place(self, pool: str, size: int) -> int:
        free = self.free_spans(pool)
        for first, _ in self.gaps(pool):
            begin = next((b for b, e in free if e == first), first)
            if all(last <= begin or begin + size <= at for at, last in self.used[pool].values()):
                return int(begin)
        raise AssertionError

    def free(self, key: Hashable) -> None:
        for used in self.used.values():
            used.pop(key, None)

    def empty_cache(self) -> None:
        for pool, spans in self.reserved.items():
            taken = self.used[pool].values()
            self.reserved[pool] = [(b, e) for b, e in spans if any(at < e and b < last for at, last in taken)]
