"""The order of several datasets that are mixed: each shuffled and repeated by itself, interleaved by their shares.

A dataset goes on from pass to pass where it was: no row of it comes again before all of it were used. A place in the
mixture is a place in each of them, and how many examples of each were taken.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, NamedTuple, TypeVar

from hf_accum.config.data import MixUntil
from hf_accum.data.interleaving import Shares
from hf_accum.data.mixture import Mixture
from hf_accum.data.shuffling import START, Order, Place
from hf_accum.errors import UserError
from hf_accum.seeding import derive_seed

T = TypeVar("T")


class _Taken(NamedTuple, Generic[T]):
    """An example of a dataset, in the dataset's own pass, and the place behind it."""

    item: tuple[str, T]
    epoch: int
    after: Place
    bad_rows: Counter[str]


@dataclass(frozen=True)
class MixedItem(Generic[T]):
    """A block of the one example that comes next; `epoch` is the pass of its dataset."""

    items: Sequence[tuple[str, T]]
    epoch: int
    place: Place
    bad_rows: Counter[str]
    skipped: int = 0

    def after(self, taken: int) -> Place:
        """The place behind it."""
        assert taken == 1
        return self.place


@dataclass(frozen=True)
class MixedOrder(Generic[T]):
    """The orders of the datasets, and how they are interleaved.

    The pass of the mixture is that of the dataset that is behind all others (`all_exhausted`), or ahead of them.
    """

    names: Sequence[str]
    orders: Sequence[Order[T]]
    shares: Shares
    until: MixUntil

    def passes(self, epochs: Iterable[int], place: Place) -> Iterator[tuple[int, Place, Iterator[MixedItem[T]]]]:
        """Of each pass its number, the place where its reading begins, and what is read, one pass after the other.

        Raises:
            UserError: for a bad row, unless they are skipped; for a dataset without any example.
        """
        parts = list(place.parts) or [Place(place.epoch) for _ in self.orders]
        if len(parts) != len(self.orders):
            raise UserError(
                f"the run was at a place in {len(parts)} datasets, and now has {len(self.orders)}: `resume never` "
                "starts anew"
            )
        streams = [self._repeated(one, part) for one, part in enumerate(parts)]
        for epoch in epochs:
            yield epoch, Place(epoch, parts=tuple(parts)), self._pass(epoch, parts, streams)

    def _pass(self, epoch: int, parts: list[Place], streams: Sequence[Iterator[_Taken[T]]]) -> Iterator[MixedItem[T]]:
        """One pass from where the datasets are; `parts` is kept up to date."""
        pass_of = min if self.until == "all_exhausted" else max
        while pass_of(part.epoch for part in parts) <= epoch:
            one = self.shares.following([part.drawn for part in parts])
            item, own_epoch, after, bad_rows = next(streams[one])
            parts[one] = replace(after, drawn=parts[one].drawn + 1)
            yield MixedItem((item,), own_epoch, Place(epoch, parts=tuple(parts)), bad_rows)

    def _repeated(self, one: int, place: Place) -> Iterator[_Taken[T]]:
        """The examples of a dataset, pass after pass. The place behind the last one is the start of the next pass."""
        while True:
            bad_rows: Counter[str] = Counter()
            last: _Taken[T] | None = None
            is_start = replace(place, drawn=0) == Place(place.epoch)
            for block in self.orders[one].blocks(place.epoch, START if is_start else place):
                bad_rows += block.bad_rows
                for taken in range(block.skipped, len(block.items)):
                    if last is not None:
                        yield last
                    last = _Taken(block.items[taken], place.epoch, block.after(taken + 1), bad_rows)
                    bad_rows = Counter()
            following = Place(place.epoch + 1)
            if last is not None:
                yield last._replace(after=following, bad_rows=last.bad_rows + bad_rows)
            elif is_start:
                raise UserError(f"dataset {self.names[one]!r} has no usable example to train on")
            place = following


def in_mixture(order: Order[T], mixture: Mixture | None) -> Order[T] | MixedOrder[T]:
    """An order of all rows as that of the datasets they are from; as it is where these are only put together.

    Raises:
        UserError: if they have weights, and each rank is to read its own shards.
    """
    if mixture is None or mixture.shares is None:
        return order
    if order.of_ranks is not None:
        if mixture.weights is None:
            return order
        raise UserError(
            "`stream_split` shards: has to be examples where datasets have weights: which rank has which files would "
            "change their shares in a window"
        )
    orders = [
        replace(order, shards=shards, seed=derive_seed(order.seed, "dataset", one))
        for one, shards in enumerate(mixture.shards)
    ]
    return MixedOrder(mixture.names, orders, mixture.shares, mixture.until if mixture.weights else "all_exhausted")
