"""This rank's part of a window in the pieces of a forward each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from hf_accum.accumulation.example import Example, inputs_of
from hf_accum.accumulation.splitting import Cutter
from hf_accum.accumulation.window import Window

Piece = tuple[Example, ...]


@dataclass(frozen=True)
class Cut:
    """The pieces of a window, of a forward each, and the version of the cutter that cut them."""

    pieces: Sequence[Piece]
    cutter: Cutter
    version: tuple[int, int]

    def is_that_of(self, cutter: Cutter) -> bool:
        """Whether this cutter would cut the window so."""
        return self.cutter is cutter and self.version == cutter.version


def cut_window(window: Window, cutter: Cutter) -> Cut:
    """This rank's examples in the pieces of a forward each; at least one, for a rank without examples too."""
    version = cutter.version  # before the cut: if it changes meanwhile, the cut is an old one
    pieces = cutter.cut(inputs_of(window.examples)) or [tuple(inputs_of([window.dummy])[:1])]
    return Cut(pieces, cutter, version)


@dataclass(frozen=True)
class MadeAhead:
    """A window's first attempt: how it was cut, and the batches in that order."""

    cut: Cut
    batches: Iterator[Any]


def cut_batches(window: Window, cutter: Cutter) -> Cut:
    """This rank's batches in pieces of a forward each: whole, or in equal parts where the capacity is smaller."""
    version = cutter.version
    pieces: list[Piece] = []
    for batch in window.examples:
        count, most = len(batch.parts), cutter.capacity.num_examples(batch.parts[0].length)
        num_pieces = -(-count // most)
        ends = [count * number // num_pieces for number in range(num_pieces + 1)]
        pieces += [batch.parts[start:end] for start, end in pairwise(ends)]
    return Cut(pieces or [window.dummy.parts], cutter, version)
