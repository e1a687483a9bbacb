"""Which groups of rows are held out: by a hash of each, or by the rows that were seen; or all of them."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np

from hf_accum.data.stratification import stratify
from hf_accum.data.survey import Survey

_holds_out_all: ContextVar[bool] = ContextVar("holds_out_all", default=False)


@contextmanager
def all_held_out() -> Iterator[None]:
    """Inside, all rows of a dataset without a split of its own to evaluate on are held out: none is trained on."""
    before = _holds_out_all.set(True)
    try:
        yield
    finally:
        _holds_out_all.reset(before)


def holds_out_all() -> bool:
    """Whether it is so."""
    return _holds_out_all.get()


@dataclass(frozen=True)
class HeldOut:
    """Which groups are held out, by their hashes: those `below` a number, and some besides."""

    below: int = 0
    groups: frozenset[int] = frozenset()

    def __contains__(self, group: int) -> bool:
        """Whether the group of this hash is held out."""
        return group < self.below or group in self.groups

    def of(self, groups: np.ndarray) -> np.ndarray:
        """The same of many, (num_rows,) each."""
        named = np.isin(groups, np.fromiter(self.groups, dtype=np.uint64, count=len(self.groups)))
        return named | (groups <= np.uint64(self.below - 1)) if self.below else named


def by_hash(fraction: float) -> HeldOut:
    """The share of groups that a hash of the group's value alone holds out: known before any row is read.

    The split is the same on every machine, in every order and for every seed; a larger share has all groups of a
    smaller one.
    """
    return HeldOut(below=math.ceil(fraction * 2**64))


def by_rows(found: Survey, fraction: float) -> HeldOut:
    """What is held out of rows that were seen: of each label its share (`stratify`), and without labels by the hash.

    Of two groups or more at least one is held out, and at least one is not; a fraction of 1 holds out all.
    """
    if fraction == 1:
        return by_hash(1)
    groups = np.asarray(found.groups)
    if any(found.label_sets):
        return HeldOut(groups=stratify(groups, np.asarray(found.kinds), tuple(found.label_sets), fraction))
    lowest, highest = int(groups.min()), int(groups.max())
    return HeldOut(below=min(max(by_hash(fraction).below, lowest + 1), max(highest, lowest + 1)))
