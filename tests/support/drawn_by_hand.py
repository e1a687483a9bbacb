"""A bootstrap over groups as a plain loop: the oracle of the intervals of figures that are computed all at once."""

from collections.abc import Callable, Sequence

import numpy as np


def interval_by_hand(groups: Sequence[int], figure: Callable[[list[int]], float]) -> tuple[float, float]:
    """The 95 % percentile interval of the figure of some examples, by their numbers: those of the groups drawn."""
    members = [[index for index, group in enumerate(groups) if group == one] for one in range(max(groups) + 1)]
    values = []
    for row in range(1_000):
        drawn = np.random.default_rng([0, row]).integers(0, len(members), len(members))
        values.append(figure([index for one in drawn for index in members[one]]))
    low, high = np.percentile([value for value in values if np.isfinite(value)], [2.5, 97.5])
    return float(low), float(high)
