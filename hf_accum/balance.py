"""Evening out the work of a window over the ranks: which examples move, and moving them.

The ranks wait for each other at the end of each window, so that it takes as long as its slowest rank. Which rank
computes an example is free. Every rank knows all lengths, and works out the same assignment: longest processing time
first (Graham, Bounds on multiprocessing timing anomalies, SIAM J. Appl. Math. 17, 1969), except that an example stays
where it is as long as its rank has time left of an even share.
"""

import heapq
from collections.abc import Sequence

import numpy as np

from hf_accum.costs import Costs
from hf_accum.ranks import Ranks
from hf_accum.window import Example

_MOST_EXAMPLES = 64  # of a micro-batch, in what an example costs


def balanced(examples: Sequence[Example], counts: Sequence[int], costs: Costs, ranks: Ranks) -> tuple[Example, ...]:
    """This rank's examples of the window after it was evened out. Two collectives.

    `counts` are the numbers of examples of the ranks, `costs` those of this one, from which its speed is known.
    """
    most = max(counts)
    mine = [example.length for example in examples]
    told = ranks.gather([*mine, *[0] * (most - len(mine)), *costs.as_numbers()])
    lengths = [numbers[:count] for numbers, count in zip(told, counts, strict=True)]
    owners = assign(lengths, [Costs.from_numbers(numbers[most:]) for numbers in told])
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
    seconds = {rank: _seconds_by_length(costs[rank], lengths) for rank in range(len(costs))}
    all_of_it = [sum(seconds[rank][length] for of_rank in lengths for length in of_rank) for rank in seconds]
    even_share = 1 / sum(1 / whole for whole in all_of_it) if all(all_of_it) else 0.0
    loads = [0.0] * len(costs)
    least_loaded = [(0.0, rank) for rank in range(len(costs))]
    owners = [[rank] * len(of_rank) for rank, of_rank in enumerate(lengths)]
    longest_first = sorted(
        (-length, rank, index) for rank, of_rank in enumerate(lengths) for index, length in enumerate(of_rank)
    )
    for negative, home, index in longest_first:
        owner = home
        if loads[home] + seconds[home][-negative] > even_share:
            while least_loaded[0][0] != loads[least_loaded[0][1]]:  # it has got more since
                rank = heapq.heappop(least_loaded)[1]
                heapq.heappush(least_loaded, (loads[rank], rank))
            owner = least_loaded[0][1]
        owners[home][index] = owner
        loads[owner] += seconds[owner][-negative]
    return owners


def _seconds_by_length(costs: Costs, lengths: Sequence[Sequence[int]]) -> dict[int, float]:
    """What an example costs: its share of the micro-batch in which examples of its length cost least."""
    numbers = np.arange(1, _MOST_EXAMPLES + 1)
    return {
        length: float((costs.seconds(numbers, length) / numbers).min())
        for length in sorted({length for of_rank in lengths for length in of_rank})
    }
