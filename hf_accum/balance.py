"""Evening out the work of a window over the ranks: which examples move, and moving them.

The ranks wait for each other at the end of each window, so that it takes as long as its slowest rank. Which rank
computes an example is free. Every rank knows all lengths, and works out the same assignment: longest processing time
first, each to the rank that is done with it first (Graham, Bounds on multiprocessing timing anomalies, SIAM J. Appl.
Math. 17, 1969), except that an example stays where it is as long as its rank has time left of an even share.
"""

import heapq
from collections import Counter
from collections.abc import Sequence

import numpy as np

from hf_accum.costs import SIZES, Costs, Speed, mean_costs
from hf_accum.ranks import Ranks
from hf_accum.seeding import derive_seed
from hf_accum.window import Example

_MOST_EXAMPLES = 64
_ANY_NUMBER = (_MOST_EXAMPLES,) * len(SIZES)


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
    return owners


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
    sizes = np.minimum(np.searchsorted(SIZES, lengths), len(SIZES) - 1)  # the next larger one
    fitting = numbers <= np.maximum(1, np.array(most)[sizes])[None, :]
    shares = np.where(fitting, costs.seconds(numbers, np.array(lengths, dtype=int)[None, :]) / numbers, np.inf)
    return dict(zip(lengths, shares.min(axis=0).tolist(), strict=True))
