"""Evening out the work of a window over the ranks: which examples move, and moving them.

The ranks wait for each other at the end of each window, so that it takes as long as its slowest rank. Which rank
computes an example is free. Every rank knows all lengths, and works out the same assignment: longest processing time
first, each to the rank that is done with it first (Graham, Bounds on multiprocessing timing anomalies, SIAM J. Appl.
Math. 17, 1969), except that an example stays where it is as long as its rank has time left of an even share. That
takes an example for its share of a micro-batch; where ranks have few, they then trade by what their cuts really take.
"""

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np

from hf_accum.accumulation.example import Example
from hf_accum.accumulation.splitting import least_seconds
from hf_accum.accumulation.time_model import SIZES, Costs, Speed, mean_costs
from hf_accum.distributed.ranks import Ranks
from hf_accum.seeding import derive_seed

_MOST_EXAMPLES = 64
_ANY_NUMBER = (_MOST_EXAMPLES,) * len(SIZES)
_FEW_EXAMPLES = 16  # of a rank: with more the micro-batches even out by themselves
_EVEN = 1.03  # the slowest rank by the mean of all: what is gained beyond is not worth moving examples
_MOST_TRADES = 4  # for each rank
_NUM_PARTNERS = 4
_NUM_TRIED = 6

Kind = tuple[Costs, tuple[int, ...]]
"""What ranks that take equally long have in common: `Speed.costs` and `Speed.most`."""

_Held = tuple[int, int, int]  # an example: its negative length, so that the longest come first, its rank, its place


def balanced(examples: Sequence[Example], counts: Sequence[int], speed: Speed, ranks: Ranks) -> tuple[Example, ...]:
    """This rank's examples of the window after it was evened out. Two collectives.

    `counts` are the numbers of examples of the ranks, `speed` is that of this one. Ranks on devices of one kind are
    taken for equally fast: what they measured differs by chance.
    """
    most = max(counts)
    mine = [example.length for example in examples]
    fits = speed.most or _ANY_NUMBER
    told = ranks.gather(
        [*mine, *[0] * (most - len(mine)), derive_seed(speed.device), *fits, *speed.costs.as_numbers()]
    )
    lengths = [numbers[:count] for numbers, count in zip(told, counts, strict=True)]
    devices = [numbers[most] for numbers in told]
    costs = [Costs.from_numbers(numbers[most + 1 + len(SIZES) :]) for numbers in told]
    of_device = {
        device: mean_costs([one for one, its in zip(costs, devices, strict=True) if its == device])
        for device in dict.fromkeys(devices)
    }
    owners = assign(
        lengths,
        [of_device[device] for device in devices],
        [tuple(numbers[most + 1 : most + 1 + len(SIZES)]) for numbers in told],
    )
    here = ranks.index
    outgoing: dict[int, list[Example]] = {}
    for example, owner in zip(examples, owners[here], strict=True):
        outgoing.setdefault(owner, []).append(example)
    kept = outgoing.pop(here, [])
    sources = [rank for rank, of_rank in enumerate(owners) if rank != here and here in of_rank]
    incoming = ranks.exchange(outgoing, sources)
    return (*kept, *(example for rank in sources for example in incoming[rank]))


def assign(
    lengths: Sequence[Sequence[int]], costs: Sequence[Costs], most: Sequence[tuple[int, ...]] | None = None
) -> list[list[int]]:
    """The rank that computes each example of each rank.

    `lengths` are those of each rank's examples, `costs` its predicted times, `most` what fits at once, as `Speed` has
    it (None: anything). The same arguments give the same result on every machine.
    """
    numbers = Counter(length for of_rank in lengths for length in of_rank)
    # Lengths differ, so that a rank's share is cut into about three micro-batches at the least.
    at_once = min(_MOST_EXAMPLES, max(1, numbers.total() // len(costs) // 3))
    kinds = list(zip(costs, most or [_ANY_NUMBER] * len(costs), strict=True))
    seconds = {kind: _seconds_by_length(*kind, at_once, sorted(numbers)) for kind in dict.fromkeys(kinds)}
    all_of_it = {kind: sum(of_kind[length] * n for length, n in numbers.items()) for kind, of_kind in seconds.items()}
    even_share = 1 / sum(1 / all_of_it[kind] for kind in kinds) if numbers else 0.0
    loads = [0.0] * len(kinds)
    # Among ranks of one kind the least loaded is done first.
    least_loaded = {kind: [(0.0, rank) for rank, its in enumerate(kinds) if its == kind] for kind in seconds}
    owners = [[rank] * len(of_rank) for rank, of_rank in enumerate(lengths)]
    longest_first = sorted(
        (-length, rank, index) for rank, of_rank in enumerate(lengths) for index, length in enumerate(of_rank)
    )
    for negative, home, index in longest_first:
        length = -negative
        owner = home
        at_home = loads[home] + seconds[kinds[home]][length]
        if at_home > even_share:
            done = [(_least(heap, loads) + seconds[kind][length], heap[0][1]) for kind, heap in least_loaded.items()]
            soonest, other = min(done)
            owner = other if soonest < at_home else home
        owners[home][index] = owner
        loads[owner] += seconds[kinds[owner]][length]
    if numbers.total() <= _FEW_EXAMPLES * len(kinds):
        _trade(owners, lengths, kinds, seconds)
    return owners


def _trade(
    owners: Sequence[list[int]],
    lengths: Sequence[Sequence[int]],
    kinds: Sequence[Kind],
    shares: Mapping[Kind, Mapping[int, float]],
) -> None:
    """Change `owners` until the cuts of all ranks take equally long, or nothing helps.

    The slowest rank gives an example to one of the fastest, or swaps one with it: the trade after which the slower of
    the two is done first, of those that by the examples' `shares` come nearest to halving what lies between them.
    """
    held: list[list[_Held]] = [[] for _ in kinds]
    for home, of_rank in enumerate(lengths):
        for index, length in enumerate(of_rank):
            held[owners[home][index]].append((-length, home, index))
    cuts = {kind: _cut_seconds(kind) for kind in shares}
    loads = [cuts[kind](its) for kind, its in zip(kinds, map(sorted, held), strict=True)]
    for _ in range(_MOST_TRADES * len(kinds)):
        slow = max(range(len(kinds)), key=loads.__getitem__)
        if loads[slow] <= _EVEN * sum(loads) / len(loads):
            break
        others = (rank for rank in range(len(kinds)) if rank != slow)
        for fast in heapq.nsmallest(_NUM_PARTNERS, others, key=loads.__getitem__):
            of_slow, of_fast = shares[kinds[slow]], shares[kinds[fast]]
            between = (loads[slow] - loads[fast]) / 2
            pairs = [
                (abs(of_slow[-given[0]] - sum(of_fast[-one[0]] for one in taken) - between), given, taken)
                for given, taken in itertools.product(held[slow], [[], *([one] for one in held[fast])])
            ]
            tried = []
            for _, given, taken in heapq.nsmallest(_NUM_TRIED, pairs):
                left = sorted([*(one for one in held[slow] if one != given), *taken])
                right = sorted([*(one for one in held[fast] if one not in taken), given])
                seconds = (cuts[kinds[slow]](left), cuts[kinds[fast]](right))
                tried.append((max(seconds), seconds, left, right))
            worst, seconds, left, right = min(tried)
            if worst < loads[slow]:
                held[slow], held[fast] = left, right
                loads[slow], loads[fast] = seconds
                break
        else:
            break
    for rank, its in enumerate(held):
        for _, home, index in its:
            owners[home][index] = rank


def _cut_seconds(kind: Kind) -> Callable[[Sequence[_Held]], float]:
    """Of examples, longest first: the least seconds in which a rank of a kind can compute them."""
    costs, most = kind

    @cache
    def seconds_at(length: int) -> np.ndarray:
        return costs.seconds(np.arange(1, min(int(_fitting(most, length)), _MOST_EXAMPLES) + 1), length)

    return lambda held: float(least_seconds([-negative for negative, _, _ in held], seconds_at)[-1])


def _least(heap: list[tuple[float, int]], loads: Sequence[float]) -> float:
    """The least load of a kind's ranks; its rank is at the top of the heap then."""
    while heap[0][0] != loads[heap[0][1]]:  # it has got more since
        rank = heap[0][1]
        heapq.heapreplace(heap, (loads[rank], rank))
    return heap[0][0]


def _seconds_by_length(costs: Costs, most: Sequence[int], at_once: int, lengths: Sequence[int]) -> dict[int, float]:
    """What an example costs: its share of the micro-batch in which examples of its length cost least, and fit.

    `at_once` are the most of one length that are expected in a micro-batch.
    """
    if not lengths:
        return {}
    numbers = np.arange(1, at_once + 1)[:, None]
    fits = numbers <= _fitting(most, lengths)[None, :]
    shares = np.where(fits, costs.seconds(numbers, np.array(lengths, dtype=int)[None, :]) / numbers, np.inf)
    return dict(zip(lengths, shares.min(axis=0).tolist(), strict=True))


def _fitting(most: Sequence[int], lengths: int | Sequence[int]) -> np.ndarray:
    """How many examples of these lengths fit at once, by the next larger one of `SIZES`."""
    return np.maximum(1, np.array(most)[np.minimum(np.searchsorted(SIZES, lengths), len(SIZES) - 1)])
