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

from hf_accum.costs import Costs, Speed, mean_costs
from hf_accum.ranks import Ranks
from hf_accum.seeding import derive_seed
from hf_accum.window import Example

_MOST_EXAMPLES = 64  # of a micro-batch, in what an example costs


def balanced(examples: Sequence[Example], counts: Sequence[int], speed: Speed, ranks: Ranks) -> tuple[Example, ...]:
    """This rank's examples of the window after it was evened out. Two collectives.

    `counts` are the numbers of examples of the ranks, `speed` is that of this one. Ranks on devices of one kind are
    taken for equally fast: what they measured differs by chance.
    """
    most = max(counts)
    mine = [example.length for example in examples]
    kind = derive_seed(speed.device)
    told = ranks.gather([*mine, *[0] * (most - len(mine)), kind, *speed.costs.as_numbers()])
    lengths = [numbers[:count] for numbers, count in zip(told, counts, strict=True)]
    kinds = [numbers[most] for numbers in told]
    of_kind = {
        kind: mean_costs([Costs.from_numbers(numbers[most + 1 :]) for numbers in told if numbers[most] == kind])
        for kind in dict.fromkeys(kinds)
    }
    owners = assign(lengths, [of_kind[kind] for kind in kinds])
    here = ranks.index
    outgoing: dict[int, list[Example]] = {}
    for example, owner in zip(examples, owners[here], strict=True):
        outgoing.setdefault(owner, []).append(example)
    kept = outgoing.pop(here, [])
    sources = [rank for rank, of_rank in enumerate(owners) if rank != here and here in of_rank]
    incoming = ranks.exchange(outgoing, sources)
    return (*kept, *(example for rank in sources for example in incoming[rank]))


def assign(lengths: Sequence[Sequence[int]], costs: Sequence[Costs]) -> list[list[int]]:
    """The rank that computes each example of each rank.

    `lengths` are those of each rank's examples, `costs` its predicted times. The same arguments give the same result
    on every machine.
    """
    numbers = Counter(length for of_rank in lengths for length in of_rank)
    seconds = {kind: _seconds_by_length(kind, sorted(numbers)) for kind in dict.fromkeys(costs)}
    all_of_it = {kind: sum(of_kind[length] * n for length, n in numbers.items()) for kind, of_kind in seconds.items()}
    even_share = 1 / sum(1 / all_of_it[kind] for kind in costs) if numbers else 0.0
    loads = [0.0] * len(costs)
    # Among ranks of one kind the least loaded is done first.
    least_loaded = {kind: [(0.0, rank) for rank, its in enumerate(costs) if its == kind] for kind in seconds}
    owners = [[rank] * len(of_rank) for rank, of_rank in enumerate(lengths)]
    longest_first = sorted(
        (-length, rank, index) for rank, of_rank in enumerate(lengths) for index, length in enumerate(of_rank)
    )
    for negative, home, index in longest_first:
        length = -negative
        owner = home
        at_home = loads[home] + seconds[costs[home]][length]
        if at_home > even_share:
            done = [(_least(heap, loads) + seconds[kind][length], heap[0][1]) for kind, heap in least_loaded.items()]
            soonest, other = min(done)
            owner = other if soonest < at_home else home
        owners[home][index] = owner
        loads[owner] += seconds[costs[owner]][length]
    return owners


def _least(heap: list[tuple[float, int]], loads: Sequence[float]) -> float:
    """The least load of a kind's ranks; its rank is at the top of the heap then."""
    while heap[0][0] != loads[heap[0][1]]:  # it has got more since
        rank = heap[0][1]
        heapq.heapreplace(heap, (loads[rank], rank))
    return heap[0][0]


def _seconds_by_length(costs: Costs, lengths: Sequence[int]) -> dict[int, float]:
    """What an example costs: its share of the micro-batch in which examples of its length cost least."""
    numbers = np.arange(1, _MOST_EXAMPLES + 1)[:, None]
    shares = costs.seconds(numbers, np.array(lengths, dtype=int)[None, :]) / numbers
    return dict(zip(lengths, shares.min(axis=0).tolist(), strict=True)) if lengths else {}
