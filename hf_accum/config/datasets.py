"""Which datasets a flag names: one, or several with commas between, each with its weight behind the last colon."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from hf_accum.config.validation import require
from hf_accum.errors import UserError

MOST_PARTS = 100_000
"""Into so many parts the weights may divide the whole: the order of the datasets repeats after as many examples."""


@dataclass(frozen=True)
class Part:
    """One of the datasets: what the user calls it, where it is, and its weight among them (None: by its size)."""

    name: str
    location: str
    weight: Fraction | None = None


Datasets = str | tuple[Part, ...]
"""What `parts_of` takes: the text of the flag, or the datasets."""


def parts_of(datasets: Datasets) -> tuple[Part, ...]:
    """The datasets that are named, in their order, all with weights or none.

    A text that is a file or folder is one, whatever its name.

    Raises:
        UserError: for a weight that is not above 0, or that only some have; for an empty name, or one given twice.
    """
    if not isinstance(datasets, str):
        return datasets
    if os.path.exists(datasets):
        return (Part(datasets, datasets),)
    parts = tuple(_part(datasets, text.strip()) for text in datasets.split(","))
    if len(parts) == 1:
        require(parts[0].weight is None, "dataset", datasets, "without a weight, or of several: A:0.7,B:0.3")
        return parts
    require(all(part.name for part in parts), "dataset", datasets, "names with commas between, none of them empty")
    weighted = [part for part in parts if part.weight is not None]
    if 0 < len(weighted) < len(parts):
        bare = next(part.name for part in parts if part.weight is None)
        raise UserError(
            f"`dataset` {datasets}: {bare} has no weight: all datasets have one (as A:0.7,B:0.3), or none"
        )
    seen: set[str] = set()
    for part in parts:
        place = os.path.realpath(part.location) if os.path.exists(part.location) else part.location
        require(place not in seen, "dataset", datasets, f"different datasets: {part.name} is named twice")
        seen.add(place)
    if weighted:
        total = sum(whole_weights([part.weight for part in weighted if part.weight is not None]))
        rule = f"of rounder weights: these divide the whole into more than {MOST_PARTS:,} parts"
        require(total <= MOST_PARTS, "dataset", datasets, rule)
    return parts


def whole_weights(weights: Sequence[Fraction | int]) -> tuple[int, ...]:
    """The least whole numbers that stand to each other as the weights do."""
    denominator = math.lcm(*(Fraction(weight).denominator for weight in weights))
    whole = [int(weight * denominator) for weight in weights]
    common = math.gcd(*whole)
    return tuple(number // common for number in whole)


def _part(datasets: str, text: str) -> Part:
    name, colon, behind = text.rpartition(":")
    try:
        weight = float(behind)
    except ValueError:  # `embedded:icd`, `hf://...`, `C:\notes.csv`
        return Part(text, text)
    if not colon:
        return Part(text, text)
    rule = f"of weights that are finite numbers above 0: {name} has {behind}"
    require(math.isfinite(weight) and weight > 0, "dataset", datasets, rule)
    return Part(name, name, Fraction(behind))
