"""In which order examples are taken from several datasets, so that each has its share at any time.

The quota method (Balinski and Young, 1975), by which seats are given to states one after the other: of the datasets
that are behind their share, the next example is from the one whose next is due first. After n examples a dataset has
had its share of n, rounded down or up. After as many examples as the whole weights have in sum the order repeats.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Shares:
    """Of each dataset its weight: whole numbers above 0 without a common divisor."""

    weights: tuple[int, ...]

    def following(self, taken: Sequence[int]) -> int:
        """From which dataset the next example is, after so many of each were taken in this order."""
        total, number = self.total, sum(taken) + 1
        best = -1
        for one, (weight, count) in enumerate(zip(self.weights, taken, strict=True)):
            if count * total >= weight * number:
                continue  # one more would be too many
            if best < 0 or (count + 1) * self.weights[best] < (taken[best] + 1) * weight:
                best = one
        return best

    def position(self, dataset: int, number: int) -> int:
        """After how many examples the dataset has had so many (at least 1)."""
        periods, rest = divmod(number - 1, self.weights[dataset])
        return periods * self.total + self._positions[dataset][rest]

    def counts(self, number: int) -> list[int]:
        """How many of so many examples are from each dataset."""
        periods, rest = divmod(number, self.total)
        found = zip(self.weights, self._positions, strict=True)
        return [periods * weight + bisect_right(positions, rest) for weight, positions in found]

    @cached_property
    def total(self) -> int:
        """The sum of the weights."""
        return sum(self.weights)

    @cached_property
    def _positions(self) -> list[list[int]]:
        """Of each dataset the positions of its examples in the order, from 1, until it repeats."""
        taken = [0] * len(self.weights)
        found: list[list[int]] = [[] for _ in self.weights]
        for position in range(1, self.total + 1):
            one = self.following(taken)
            taken[one] += 1
            found[one].append(position)
        return found
