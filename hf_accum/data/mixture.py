"""Several datasets as one: their shards one after the other, their shares, and how long a pass over them is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import accumulate, pairwise

from hf_accum.config.data import MixUntil
from hf_accum.config.datasets import Part, whole_weights
from hf_accum.data.formats.rows import BadRow, Row
from hf_accum.data.interleaving import Shares
from hf_accum.data.source import Source
from hf_accum.errors import UserError


@dataclass(frozen=True)
class Mixture:
    """Which shards are of which dataset, and what share of the examples to train on each has.

    `weights` None: shares by size, each row once in a pass.
    """

    names: tuple[str, ...]
    weights: tuple[Fraction, ...] | None
    until: MixUntil
    num_shards: tuple[int, ...]
    num_eval_shards: tuple[int, ...]
    sizes: tuple[int, ...] | None = None
    """Usable examples to train on, where they were counted."""

    @staticmethod
    def of(
        parts: Sequence[Part], sources: Sequence[Source], eval_sources: Sequence[Source], until: MixUntil
    ) -> "Mixture":
        """Of opened datasets."""
        weights = tuple(part.weight for part in parts if part.weight is not None)
        num_shards, num_eval_shards = (tuple(one.num_shards for one in side) for side in (sources, eval_sources))
        return Mixture(tuple(part.name for part in parts), weights or None, until, num_shards, num_eval_shards)

    @property
    def shards(self) -> list[range]:
        """The shards to train on, of each dataset."""
        return ranges_of(self.num_shards)

    @property
    def eval_shards(self) -> list[range]:
        """The shards of the source that is evaluated on, of each dataset."""
        return ranges_of(self.num_eval_shards)

    @cached_property
    def shares(self) -> Shares | None:
        """None: by size, which is not known."""
        weights = self.weights or self.sizes
        return None if weights is None else Shares(whole_weights(weights))

    def with_sizes(self, sizes: Sequence[int]) -> "Mixture":
        """This, with the examples to train on of each dataset.

        Raises:
            UserError: if a dataset has none.
        """
        for name, size in zip(self.names, sizes, strict=True):
            if not size:
                raise UserError(
                    f"dataset {name!r} has no usable example to train on: give it more rows, or leave it out"
                )
        return replace(self, sizes=tuple(sizes))

    def pass_sizes(self, num_epochs: int) -> Iterator[int]:
        """The examples of each pass, where the sizes were counted: they may differ by one or so."""
        assert self.sizes is not None
        assert self.shares is not None
        if self.weights is None:
            yield from (sum(self.sizes) for _ in range(num_epochs))
            return
        end_of = max if self.until == "all_exhausted" else min
        before = 0
        for number in range(1, num_epochs + 1):
            end = end_of(self.shares.position(one, number * size) for one, size in enumerate(self.sizes))
            yield end - before
            before = end

    def lines(self, num_steps: int, effective_batch_size: int) -> list[str]:
        """For the user: of each dataset its share, its size and how often a row is seen in so many steps."""
        if self.shares is None:
            return [f"mixed      {', '.join(self.names)}: read one after the other, as the files of one dataset"]
        if self.sizes is None:
            shares = zip(self.names, self._parts_of_whole, strict=True)
            return [f"mixed      {', '.join(f'{share:.2%} of {name}' for name, share in shares)}"]
        num_examples = 0
        for of_pass in self.pass_sizes(num_steps):  # each has a step at least
            steps = min(num_steps, -(-of_pass // effective_batch_size))
            num_examples += min(of_pass, steps * effective_batch_size)
            num_steps -= steps
            if not num_steps:
                break
        # By size the order is as long as a pass: it is not made for this.
        counts = (
            self.shares.counts(num_examples) if self.weights else [num_examples * s for s in self._parts_of_whole]
        )
        return [
            f"mixed      {share:.2%} of {name}: {size:,} examples to train on, each seen {count / size:.2f} times"
            for name, share, size, count in zip(self.names, self._parts_of_whole, self.sizes, counts, strict=True)
        ]

    @property
    def _parts_of_whole(self) -> list[float]:
        assert self.shares is not None
        return [weight / self.shares.total for weight in self.shares.weights]


def ranges_of(sizes: Sequence[int]) -> list[range]:
    """Consecutive ranges of so many numbers, from 0."""
    return [range(*ends) for ends in pairwise(accumulate(sizes, initial=0))]


def joined(names: Sequence[str], sources: Sequence[Source]) -> Source:
    """Datasets as one, with the shards of each behind those before. Messages name dataset and file."""
    places = [(source, shard) for source in sources for shard in range(source.num_shards)]

    def read(shard: int, start: int) -> Iterator[tuple[int, Row | BadRow]]:
        source, own = places[shard]
        return source.read(own, start)

    def num_quoted_lines(shard: int) -> int:
        source, own = places[shard]
        return source.num_quoted_lines(own)

    class_names: dict[str, tuple[str, ...]] = {}
    for source in reversed(sources):
        class_names |= source.class_names
    return Source(
        tuple(_named(name, file) for name, source in zip(names, sources, strict=True) for file in source.names),
        read,
        class_names,
        notes=tuple(f"{name}: {note}" for name, source in zip(names, sources, strict=True) for note in source.notes),
        splits=tuple(dict.fromkeys(split for source in sources for split in source.splits)),
        num_quoted_lines=num_quoted_lines,
    )


def part_of(source: Source, shards: range) -> Source:
    """Some consecutive shards of a dataset."""
    return replace(
        source,
        names=tuple(source.names[shard] for shard in shards),
        read=lambda shard, start: source.read(shards[shard], start),
        num_quoted_lines=lambda shard: source.num_quoted_lines(shards[shard]),
    )


def _named(dataset: str, file: str) -> str:
    is_file = dataset.replace("\\", "/").rpartition("/")[2] == file
    return dataset if is_file else f"{dataset.rstrip('/')}/{file}"
