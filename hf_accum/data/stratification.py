"""Which groups are held out, so that each label has its share on both sides."""

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

_TRAIN, _HELD_OUT, _OPEN = 0, 1, 2
_Profile = tuple[tuple[int, int], ...]
"""The labels of a group, by number, with the rows that it has of each; a row without labels has one more label."""


@dataclass
class _Groups:
    """What is known of each group: about 40 bytes."""

    hashes: np.ndarray
    """Ascending."""
    profiles: list[_Profile]
    of_label: list[Sequence[int]]
    """The groups with each label, in order of their hashes."""


def stratify(
    groups: np.ndarray, kinds: np.ndarray, label_sets: Sequence[tuple[str, ...]], fraction: float
) -> frozenset[int]:
    """The hashes of the groups that are held out: of each label about this fraction of its rows, by whole groups.

    Iterative stratification (Sechidis, Tsoumakas, Vlahavas 2011, "On the stratification of multi-label data"), over
    groups: the label with the fewest groups left comes first, and each of its groups goes to the side that lacks its
    rows. Groups are taken in the order of their hashes, lowest first, and are held out while rows are lacking there:
    so those are held out that a split by the hash alone would hold out too, as far as the labels allow. After that,
    where it can be done, groups change sides so that each label of at least two groups is on both.

    Nothing is random: the same rows in any order give the same split, on any machine.

    Args:
        groups: The hash of each row's group, uint64, (num_rows,).
        kinds: Which of the `label_sets` each row has, (num_rows,).
        label_sets: The different sets of labels there are.
        fraction: Of the rows, above 0 and below 1.
    """
    found = _by_group(groups, kinds, label_sets)
    sides = _assign(found, fraction)
    _put_labels_on_both_sides(found, sides)
    return frozenset(found.hashes[np.frombuffer(sides, dtype=np.uint8) == _HELD_OUT].tolist())


def _by_group(groups: np.ndarray, kinds: np.ndarray, label_sets: Sequence[tuple[str, ...]]) -> _Groups:
    names = sorted({label for labels in label_sets for label in labels})
    number = {name: index for index, name in enumerate(names)}
    of_set = [sorted({number[label] for label in labels}) or [len(names)] for labels in label_sets]
    hashes, index = np.unique(groups, return_inverse=True)
    pairs, counts = np.unique(index * np.int64(len(label_sets)) + kinds, return_counts=True)
    of_group: Iterator[tuple[int, int, int]] = zip(
        (pairs // len(label_sets)).tolist(), (pairs % len(label_sets)).tolist(), counts.tolist(), strict=True
    )
    profiles: list[_Profile] = []
    known: dict[_Profile, _Profile] = {}
    of_label = [array("q") for _ in range(len(names) + 1)]
    for group, sets in groupby(of_group, key=lambda pair: pair[0]):
        rows = Counter[int]()
        for _, kind, count in sets:
            for label in of_set[kind]:
                rows[label] += count
        profile = tuple(sorted(rows.items()))
        profiles.append(known.setdefault(profile, profile))
        for label in rows:
            of_label[label].append(group)
    return _Groups(hashes, profiles, list(of_label))


def _assign(found: _Groups, fraction: float) -> bytearray:
    """The side of each group, by the rarest label first."""
    sides = bytearray([_OPEN]) * len(found.hashes)
    totals = Counter[int]()
    for profile, number in Counter(found.profiles).items():
        for label, count in profile:
            totals[label] += number * count
    lacking = {label: fraction * count for label, count in totals.items()}  # rows that are still to be held out
    left = {label: len(found.of_label[label]) for label in lacking}
    to_do = set(lacking)
    while to_do:
        rarest = min(to_do, key=lambda label: (left[label], label))
        to_do.remove(rarest)
        for group in found.of_label[rarest]:
            if sides[group] != _OPEN:
                continue
            profile = found.profiles[group]
            is_held_out = lacking[rarest] >= dict(profile)[rarest] / 2
            sides[group] = _HELD_OUT if is_held_out else _TRAIN
            for label, count in profile:
                left[label] -= 1
                if is_held_out:
                    lacking[label] -= count
    return sides


def _put_labels_on_both_sides(found: _Groups, sides: bytearray) -> None:
    """Move groups, the smallest first, where a label lacks on a side and the move takes no other label from one."""
    on = (Counter[int](), Counter[int]())
    for (profile, side), number in Counter(zip(found.profiles, sides, strict=True)).items():
        for label, _ in profile:
            on[side][label] += number

    def takes_away(group: int) -> tuple[int, int]:
        """How many labels would lack on the side that the group leaves: of several groups, and of this one only."""
        side = sides[group]
        lonely = [len(found.of_label[label]) for label, _ in found.profiles[group] if on[side][label] == 1]
        return sum(1 for number in lonely if number > 1), sum(
            1 for number in lonely if number == 1 and side == _TRAIN
        )

    def cost(group: int) -> tuple[tuple[int, int], int, int]:
        return takes_away(group), sum(count for _, count in found.profiles[group]), group

    def move(group: int) -> None:
        for label, _ in found.profiles[group]:
            on[sides[group]][label] -= 1
            on[1 - sides[group]][label] += 1
        sides[group] = 1 - sides[group]

    for label in sorted(range(len(found.of_label)), key=lambda label: (len(found.of_label[label]), label)):
        groups = found.of_label[label]
        if len(groups) > 1 and not (on[_TRAIN][label] and on[_HELD_OUT][label]):
            cheapest = min(groups, key=cost)
            if takes_away(cheapest)[0] == 0:
                move(cheapest)
    if len(sides) > 1 and len(set(sides)) == 1:  # each label has one group
        move(min(range(len(sides)), key=cost))
