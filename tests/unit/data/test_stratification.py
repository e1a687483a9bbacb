"""Held-out groups: each label has its share, on any machine, in any order."""

from collections import Counter, defaultdict
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_accum.data.stratification import stratify
from hf_accum.data.survey import hash_of_group

Rows = list[tuple[int, tuple[str, ...]]]
fractions = st.sampled_from([0.05, 0.1, 0.25, 0.5, 0.8])


def split(rows: Rows, fraction: float) -> set[int]:
    """The groups that are held out."""
    sets = list(dict.fromkeys(labels for _, labels in rows))
    hashes = {hash_of_group(group): group for group, _ in rows}
    groups = np.array([hash_of_group(group) for group, _ in rows], dtype=np.uint64)
    kinds = np.array([sets.index(labels) for _, labels in rows])
    return {hashes[group] for group in stratify(groups, kinds, sets, fraction)}


def counts_of(rows: Rows, groups: set[int]) -> Counter[str]:
    return Counter(label for group, labels in rows if group in groups for label in labels or ("none",))


def groups_of(rows: Rows) -> dict[str, set[int]]:
    found: dict[str, set[int]] = defaultdict(set)
    for group, labels in rows:
        for label in labels or ("none",):
            found[label].add(group)
    return found


one_label_a_group = st.lists(st.tuples(st.sampled_from("aaaaaabbc"), st.integers(1, 6)), min_size=1, max_size=60).map(
    lambda groups: [(group, (label,)) for group, (label, size) in enumerate(groups) for _ in range(size)]
)
any_labels: st.SearchStrategy[Any] = st.lists(
    st.tuples(st.integers(0, 12), st.lists(st.sampled_from("abcd"), unique=True).map(tuple)), min_size=1, max_size=40
)


@given(rows=one_label_a_group, fraction=fractions)
def test_each_label_has_its_share_to_half_a_group(rows: Rows, fraction: float) -> None:
    """Unless it has so few groups that one is moved to have it on both sides."""
    held_out, total = split(rows, fraction), counts_of(rows, {group for group, _ in rows})
    found = counts_of(rows, held_out)
    sizes = Counter(group for group, _ in rows)
    for label, groups in groups_of(rows).items():
        on_both = 0 < len(groups & held_out) < len(groups)
        assert on_both or len(groups) == 1
        largest = max(sizes[group] for group in groups)
        is_alone = len(groups & held_out) == 1 or len(groups - held_out) == 1
        assert abs(found[label] - fraction * total[label]) <= (1 if is_alone else 1 / 2) * largest


@settings(max_examples=30)
@given(rows=any_labels, fraction=fractions, data=st.data())
def test_the_order_of_rows_and_the_names_of_groups_alike_change_nothing(
    rows: Rows, fraction: float, data: st.DataObject
) -> None:
    shuffled = [
        (group, tuple(data.draw(st.permutations(labels)))) for group, labels in data.draw(st.permutations(rows))
    ]
    assert split(shuffled, fraction) == split(rows, fraction)


@given(rows=any_labels, fraction=fractions)
def test_two_groups_are_on_two_sides_and_a_label_of_several_is_not_worse_than_it_could_be(
    rows: Rows, fraction: float
) -> None:
    groups, held_out = {group for group, _ in rows}, split(rows, fraction)
    if len(groups) > 1:
        assert 0 < len(held_out) < len(groups)

    def missing(chosen: set[int]) -> int:
        return sum(1 for of in groups_of(rows).values() if len(of) > 1 and len(of & chosen) in (0, len(of)))

    if len(groups) > 1 and missing(held_out):  # no single move would be better
        assert all(missing(held_out ^ {group}) >= missing(held_out) for group in groups)
    if len(groups_of(rows)) <= 2 and len(groups) <= 8 and len(groups) > 1:
        every = [
            {g for g, chosen in zip(groups, c, strict=True) if chosen} for c in product((0, 1), repeat=len(groups))
        ]
        assert missing(held_out) == min(missing(chosen) for chosen in every)


def test_rare_labels_of_many_have_their_share() -> None:
    """2 % positives among frequent ones, several labels to a row, several rows to a patient."""
    random = np.random.default_rng(0)
    rows: Rows = []
    for patient in range(1_000):
        for _ in range(int(random.integers(1, 5))):
            present = random.random(6) < np.array([0.5, 0.3, 0.1, 0.02, 0.02, 0.01])
            rows.append((patient, tuple(name for name, is_there in zip("abcdef", present, strict=True) if is_there)))
    held_out = split(rows, 0.1)
    total, found = counts_of(rows, set(range(1_000))), counts_of(rows, held_out)
    for label, number in total.items():
        assert found[label] == pytest.approx(0.1 * number, abs=max(2, 0.015 * number)), label
    num_held_out = sum(1 for group, _ in rows if group in held_out)
    assert num_held_out / len(rows) == pytest.approx(0.1, abs=0.01)


def test_with_one_label_it_is_the_split_by_the_hash() -> None:
    """So that texts held out here are mostly those that a recipe without labels holds out."""
    rows: Rows = [(group, ("a",)) for group in range(1_000)]
    lowest = sorted(range(1_000), key=hash_of_group)[:100]
    assert split(rows, 0.1) == set(lowest)


def test_the_split_is_the_same_everywhere_and_ever() -> None:
    """These, written down once."""
    rows: Rows = [(group, ("abc"[group % 3],) if group % 5 else ()) for group in range(30)]
    assert sorted(split(rows, 0.2)) == [2, 6, 18, 22, 25, 28, 29]
