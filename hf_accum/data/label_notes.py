"""What is said of the labels that were counted before the training."""

from collections import Counter
from collections.abc import Mapping

from hf_accum.errors import shortened

_MOST_LABELS_TOLD = 20


def notes_of_labels(to_train_on: Mapping[str, int], held_out: Mapping[str, int]) -> list[str]:
    """How many examples each label has, which has none held out, and which are written nearly alike."""
    counts = Counter(to_train_on) + Counter(held_out)
    if not counts:
        return []
    told = [
        f"{shortened(name, 40)}: {to_train_on.get(name, 0):,} + {held_out.get(name, 0):,}"
        for name, _ in sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    ]
    if len(told) > _MOST_LABELS_TOLD:
        rare = len(told) - _MOST_LABELS_TOLD
        told[_MOST_LABELS_TOLD:] = [f"{rare:,} rarer (the rarest is {told[-1]})"]
    notes = [f"examples with each label, to train on + held out: {', '.join(told)}"]
    if alike := _alike(counts):
        notes.append(
            f"labels that differ only by capitals or spaces, and are classes of their own: {shortened(alike, 400)}; "
            "if they are one, write it in one way in all rows"
        )
    unseen = [name for name in counts if not held_out.get(name)]
    if unseen:
        notes.append(f"no held-out example has the label {shortened(', '.join(sorted(unseen)), 200)}")
    return notes


def _alike(counts: Mapping[str, int]) -> str:
    """The labels that are the same but for capitals and white space, with their numbers, by such groups."""
    groups: dict[str, list[str]] = {}
    for name in sorted(counts):
        groups.setdefault("".join(name.casefold().split()), []).append(name)
    several = [names for names in groups.values() if len(names) > 1]
    told = [" and ".join(f"{name!r} ({counts[name]:,})" for name in names) for names in several]
    return ", ".join(told)
