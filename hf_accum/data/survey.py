"""One pass over a dataset: what has to be known of it before the training."""

import heapq
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Literal, NamedTuple

import numpy as np

from hf_accum.data.source import Row, Source, good_rows
from hf_accum.distributed.collectives import on_all_ranks
from hf_accum.distributed.ranks import Ranks
from hf_accum.distributed.telling import told_if_long
from hf_accum.seeding import derive_seed

SAMPLE_SIZE = 1_000


class Observed(NamedTuple):
    """What a pass sees of a row."""

    labels: tuple[str, ...]
    """None, one or several."""
    content: object
    """What of it the digest of the data is to know."""
    text: str | bytes | None = None
    """By which equal examples are known."""


@dataclass
class Survey:
    """What was found. Of a row 20 bytes are kept: the hashes of its group and its text, and which labels it has."""

    groups: "array[int]" = field(default_factory=lambda: array("Q"))
    texts: "array[int]" = field(default_factory=lambda: array("Q"))
    """As many as there are rows, or none where rows have no texts."""
    kinds: "array[int]" = field(default_factory=lambda: array("I"))
    """Of each row the place of its labels among `label_sets`."""
    label_sets: dict[tuple[str, ...], int] = field(default_factory=dict)
    bad_rows: Counter[str] = field(default_factory=Counter)
    num_quoted_lines: int = 0
    """Lines of CSV that lie within quoted fields."""
    digest: int = 0
    """Of 64 bits: of the content of all good rows, at their places."""
    sample: list[tuple[int, Row]] = field(default_factory=list)
    """Some rows, by a hash of their content and place."""
    longest: tuple[int, int, Row] | None = None
    """The row with the longest text: its characters, its hash, itself."""

    @property
    def num_rows(self) -> int:
        """How many good rows there are."""
        return len(self.groups)

    @property
    def sampled(self) -> tuple[Row, ...]:
        """The rows that were kept, the longest once more where it is not among them."""
        rows = [row for _, row in self.sample]
        if self.longest is not None and self.longest[1] not in {digest for digest, _ in self.sample}:
            rows.append(self.longest[2])
        return tuple(rows)

    def labels_of(self, rows: np.ndarray) -> Counter[str]:
        """How many of the rows that a mask, (num_rows,), chooses have each label."""
        kinds = np.bincount(np.asarray(self.kinds)[rows], minlength=len(self.label_sets)).tolist()
        found = Counter[str]()
        for labels, number in zip(self.label_sets, kinds, strict=True):
            if number:
                found.update(dict.fromkeys(labels, number))
        return found

    def add(self, other: "Survey", sample_size: int = SAMPLE_SIZE) -> None:
        """Take in what was found in another part of the dataset."""
        places = [self.label_sets.setdefault(labels, len(self.label_sets)) for labels in other.label_sets]
        self.kinds.extend(places[kind] for kind in other.kinds)
        self.groups.extend(other.groups)
        self.texts.extend(other.texts)
        self.bad_rows += other.bad_rows
        self.num_quoted_lines += other.num_quoted_lines
        self.digest = (self.digest + other.digest) % 2**64
        self.sample = heapq.nsmallest(sample_size, [*self.sample, *other.sample], key=lambda one: one[0])
        self._note_longest(other.longest)

    def note(self, group: int, seen: Observed) -> None:
        """Take in the labels and the text of a row."""
        self.groups.append(group)
        self.kinds.append(self.label_sets.setdefault(seen.labels, len(self.label_sets)))
        if seen.text is not None:
            self.texts.append(hash_of_text(seen.text))

    def _note_longest(self, other: tuple[int, int, Row] | None) -> None:
        if other is not None and (self.longest is None or other[:2] > self.longest[:2]):
            self.longest = other


def survey(
    source: Source,
    observe: Callable[[Row], Observed],
    group_of: Callable[[Row], int],
    ranks: Ranks,
    on_bad_row: Literal["error", "skip"],
    sample_size: int = SAMPLE_SIZE,
) -> Survey:
    """Read every row once, each rank its share of the shards, and keep none but a sample. A collective.

    Args:
        source: The rows.
        observe: What to take note of in a row.
        group_of: The hash of a row's group.
        ranks: Those that share the work.
        on_bad_row: Whether such rows are counted.
        sample_size: How many rows are kept, the longest besides; 0: none.

    Raises:
        UserError: for the first bad row, naming file, row and field, unless they are skipped.
    """

    def look(row: Row) -> tuple[int, Observed, Row]:
        seen = observe(row)  # a row without a text has no group either: the text is what is missed first
        return group_of(row), seen, row

    found = Survey()

    def mine() -> Survey:
        sample: list[tuple[int, int, int, Row]] = []  # a heap, the highest hash on top
        for shard in range(ranks.index, source.num_shards, ranks.count):
            for number, (group, seen, row) in good_rows(source, shard, 0, look, on_bad_row, found.bad_rows):
                found.note(group, seen)
                digest = derive_seed(shard, number, repr(seen.content))
                found.digest = (found.digest + digest) % 2**64
                if sample_size:
                    one = (-digest, shard, number, row)
                    if len(sample) < sample_size:
                        heapq.heappush(sample, one)
                    elif -digest > sample[0][0]:
                        heapq.heapreplace(sample, one)
                    found._note_longest((len(seen.text or ""), digest, row))
            found.num_quoted_lines += source.num_quoted_lines(shard)
        found.sample = [(-digest, row) for digest, _, _, row in sample]
        return found

    total = Survey()
    of_each = "" if ranks.count == 1 else f" on each of {ranks.count} ranks"
    with told_if_long(ranks, "reading the dataset", lambda: f"{found.num_rows:,} rows{of_each}"):
        parts = on_all_ranks(ranks, mine)
    for part in parts:
        total.add(part, sample_size)
    return total


def hash_of_group(value: object) -> int:
    """64 bits of a group's value, the same everywhere and ever."""
    return _hash(str(value).encode(errors="surrogatepass"))


def hash_of_text(text: str | bytes) -> int:
    """64 bits of a text, whatever its capitals and white space; of bytes, as they are."""
    return _hash(text if isinstance(text, bytes) else " ".join(text.casefold().split()).encode())


def num_of_both(train_texts: np.ndarray, held_out_texts: np.ndarray) -> int:
    """How many of the held-out texts are among those to train on, by their hashes."""
    return int(np.isin(held_out_texts, train_texts).sum())


def _hash(content: bytes) -> int:
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "big")
