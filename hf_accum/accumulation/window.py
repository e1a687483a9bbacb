"""The window: the examples of one optimizer step, and how they are cut into micro-batches.

A window is defined by which examples it holds over all ranks. How it is cut is free and never changes its
gradient:

    g = (1 / W) * sum over items i of  w_i * grad loss_i,        W = sum of w_i over all ranks

W is counted before the first forward. `accelerate`'s backward divides by the number of micro-batches on this
rank, and the gradients of the ranks are summed, so each micro-batch's summed loss is multiplied by

    scale = num_micro_batches / W
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from hf_accum.accumulation.capacity import Capacity, WorkingCapacity
from hf_accum.accumulation.example import Example, inputs_of
from hf_accum.accumulation.splitting import Cutter
from hf_accum.accumulation.time_model import Timing
from hf_accum.distributed.ranks import Ranks
from hf_accum.errors import OutOfMemory
from hf_accum.seeding import derive_seed


@dataclass(eq=False)
class MicroBatch:
    """The examples of one forward on this rank, padded to `length` tokens; `index` of `count` within the window.

    `batch` is what was collated of them, on the device, where the windows come from a `Pipeline`.

    Multiply the summed loss by `scale` before the backward. A rank without examples runs one micro-batch with the
    scale 0, a `dummy`, whose gradient counts for nothing.

    Where memory ran out, `accumulate` says so in `out_of_memory`, and the window starts anew in smaller pieces.
    `retry_ambiguous` is False once an error was tried again that only might have been one of memory.
    `statistics_before` are the running statistics of the model's layers, each with its value before the window.

    A rehearsal is a forward without a graph, with the random numbers of the real one that comes later. Ranks that
    need each other's results `tell` at the end of each pass whether they came through, and learn whether all did:
    None where they do not.
    """

    examples: tuple[Example, ...]
    index: int
    count: int
    scale: float
    seed: int
    length: int
    batch: Any = None
    retry_ambiguous: bool = True
    statistics_before: list[tuple[Tensor, Tensor]] = field(default_factory=list, repr=False)
    is_no_grad_pass: bool = False
    tell: Callable[[bool], bool] | None = field(default=None, repr=False)
    out_of_memory: str | None = field(default=None, init=False)
    is_ambiguous: bool = field(default=False, init=False)
    failed_elsewhere: bool = field(default=False, init=False)
    """It is another rank that ran out of memory."""
    timing: Timing | None = field(default=None, init=False, repr=False)
    """Of its forward and backward, once they are queued."""

    @property
    def dummy(self) -> bool:
        """Whether it counts for nothing."""
        return self.scale == 0


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


@dataclass(frozen=True)
class MadeAhead:
    """A window's first attempt: how it was cut, and the batches in that order."""

    cut: Cut
    batches: Iterator[Any]


@dataclass
class Window:
    """One optimizer step. Counts and `digest` are over all ranks, `examples` are this rank's own.

    `dummy` is what a rank without examples computes for nothing. The outcome of the step (losses, padding,
    replays) is collected here while it runs.
    """

    step: int
    epoch: int
    seed: int
    examples: tuple[Example, ...]
    dummy: Example
    rank: int
    num_examples: int
    num_items: float
    num_tokens: int
    digest: str
    state: Any = field(default=None, repr=False)
    """Of the stream, behind this window: from which it goes on."""
    collate: Callable[[Piece, int], Any] = field(default=lambda piece, length: None, repr=False)
    """Makes a micro-batch's batch of its examples and their padded length."""
    made_ahead: MadeAhead | None = field(default=None, repr=False)
    seconds_waited: float = 0.0
    """For data."""
    num_micro_batches: int = field(default=0, init=False)
    num_padded_tokens: int = field(default=0, init=False)
    num_oom_replays: int = field(default=0, init=False)
    last_replay: str = field(default="", init=False)
    statistics_before: list[tuple[Tensor, Tensor]] = field(default_factory=list, init=False, repr=False)
    """The micro-batches' own."""
    _losses: list[Tensor] = field(default_factory=list, init=False, repr=False)

    def micro_batches(
        self, cutter: Cutter | WorkingCapacity | int, no_grad_pass: Ranks | None = None
    ) -> Iterator[MicroBatch]:
        """This rank's micro-batches, of similar length, each at most as large as the capacity for its length.

        If memory runs out in one, `accumulate` drops the gradients of the window and the micro-batches start
        again from the first, over the same examples, in pieces that the corrected capacity allows.

        With `no_grad_pass` all of them come without a graph before they come with one, on all the ranks together: if
        one runs out of memory, all start again. A collective at the end of each pass.

        Raises:
            OutOfMemory: if a single example does not fit, tried twice.
        """
        if isinstance(cutter, int):
            cutter = WorkingCapacity(Capacity(cutter))
        if isinstance(cutter, WorkingCapacity):
            cutter = Cutter(cutter)
        retry_ambiguous = True
        tried_alone: set[str] = set()
        while True:
            failed = None
            for micro_batch in self._attempt(cutter, retry_ambiguous, no_grad_pass):
                yield micro_batch
                if micro_batch.out_of_memory is not None:
                    failed = micro_batch
                    break
                counts = not micro_batch.dummy and not micro_batch.is_no_grad_pass
                if cutter.costs is not None and micro_batch.timing is not None and counts:
                    cutter.costs.observe(len(micro_batch.examples), micro_batch.length, micro_batch.timing)
            if failed is None:
                cutter.window_done()
                return
            if failed.failed_elsewhere:
                continue
            num_examples, length = len(failed.examples), failed.length
            if num_examples == 1 and failed.examples[0].id in tried_alone:
                raise OutOfMemory(
                    f"a single example of {length} {cutter.lengths.unit} does not fit into memory "
                    f"({failed.out_of_memory}); --gradient_checkpointing true, a smaller --{cutter.lengths.flag} or "
                    "--lora.rank, or another model need less"
                )
            if num_examples == 1:
                tried_alone.add(failed.examples[0].id)
            retry_ambiguous = retry_ambiguous and not failed.is_ambiguous
            cutter.capacity.out_of_memory(num_examples, length)
            self.num_oom_replays += 1
            self.last_replay = (
                f"memory ran out at {num_examples} examples of {length} {cutter.lengths.unit} "
                f"({failed.out_of_memory}): the window starts anew, with at most "
                f"{cutter.capacity.num_examples(length)} of that length at once"
            )

    def cut(self, cutter: Cutter) -> Cut:
        """This rank's examples in the pieces of a forward each; at least one, for a rank without examples too."""
        version = cutter.version  # before the cut: if it changes meanwhile, the cut is an old one
        return Cut(cutter.cut(inputs_of(self.examples)) or [tuple(inputs_of([self.dummy])[:1])], cutter, version)

    def _attempt(self, cutter: Cutter, retry_ambiguous: bool, no_grad_pass: Ranks | None) -> Iterator[MicroBatch]:
        ahead, self.made_ahead = self.made_ahead, None
        if ahead is not None and not ahead.cut.is_that_of(cutter):
            ahead = None
        pieces = self.cut(cutter).pieces if ahead is None else ahead.cut.pieces
        lengths = [cutter.padded(max(example.length for example in piece)) for piece in pieces]
        batches = map(self.collate, pieces, lengths) if ahead is None else ahead.batches
        self.num_micro_batches = len(pieces) if self.examples else 0
        self.num_padded_tokens = (
            sum(len(piece) * length for piece, length in zip(pieces, lengths, strict=True)) if self.examples else 0
        )
        self._losses.clear()
        scale = len(pieces) / self.num_items if self.examples else 0.0
        self.statistics_before = statistics = []
        if no_grad_pass is None:
            passes: list[tuple[bool, Iterable[Any]]] = [(False, batches)]
        else:
            passes = [(True, kept := list(batches)), (False, kept)]
        for is_no_grad_pass, made in passes:
            for index, (piece, length, batch) in enumerate(zip(pieces, lengths, made, strict=True)):
                seed = derive_seed(self.seed, "micro-batch", self.rank, index)
                yield MicroBatch(
                    piece,
                    index,
                    len(pieces),
                    scale,
                    seed,
                    length,
                    batch,
                    retry_ambiguous,
                    statistics,
                    is_no_grad_pass,
                    None if no_grad_pass is None else partial(_tell, no_grad_pass),
                )

    def record(self, loss: Tensor) -> None:
        """Take note of a micro-batch's summed loss, without waiting for the device."""
        if self.examples:
            self._losses.append(loss.detach())

    def loss_sum(self) -> Tensor | float:
        """This rank's part of the window's summed loss, on the device."""
        return sum(self._losses[1:], start=self._losses[0]) if self._losses else 0.0


def _tell(ranks: Ranks, came_through: bool) -> bool:
    return all(said == [1] for said in ranks.gather([int(came_through)]))
