"""How a window is run: cut into micro-batches, again in smaller ones where memory runs out, its losses noted.

accelerate's backward divides by the number of micro-batches on this rank, and the gradients of the ranks are summed.
So each micro-batch's summed loss is multiplied by

    scale = num_micro_batches / W,        W = the total weight of the window, over all ranks
"""

import operator
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from hf_accum.accumulation.capacity import WorkingCapacity
from hf_accum.accumulation.guard import TrainedTensors, WindowGuard
from hf_accum.accumulation.splitting import Cutter
from hf_accum.accumulation.time_model import Timing
from hf_accum.accumulation.window import Window
from hf_accum.accumulation.window_cut import Cut, MadeAhead, Piece, cut_window
from hf_accum.distributed.ranks import Ranks
from hf_accum.errors import OutOfMemory, UserError
from hf_accum.seeding import derive_seed


@dataclass(eq=False)
class MicroBatch:
    """The examples of one forward on this rank, padded to `length` tokens; `index` of `count` within the window.

    `batch` is what was collated of them, on the device, where the windows come from a `Pipeline`. A rank without
    examples runs one micro-batch of the scale 0, whose gradient counts for nothing (`is_dummy`).

    Where memory ran out, `accumulate` says so in `out_of_memory`, and the window starts anew in smaller pieces.
    `retry_ambiguous` is False once an error was tried again that only might have been one of memory.

    In a no-grad pass the forward runs without a graph, with the random numbers of the real one that comes later.
    Ranks that need each other's results `tell` at the end of each pass whether they came through, and learn whether
    all did: None where they do not.

    >>> import torch
    >>> from accelerate import Accelerator
    >>> from hf_accum import MicroBatch, windows_of
    >>> (window,) = windows_of(Accelerator(cpu=True), [torch.ones(4, 1)], batches_per_step=1)
    >>> micro_batch: MicroBatch = next(window.micro_batches(3))
    >>> len(micro_batch.batch), micro_batch.count, micro_batch.scaled(torch.tensor(8.0))  # times 2 / 4
    (2, 2, tensor(4.))
    """

    execution: "WindowExecution" = field(repr=False)
    examples: Piece
    index: int
    count: int
    scale: float
    seed: int
    length: int
    batch: Any = field(default=None, repr=False)
    retry_ambiguous: bool = True
    is_no_grad_pass: bool = False
    tell: Callable[[bool], bool] | None = field(default=None, repr=False)
    num_scaled: int = field(default=0, init=False)
    """How often a loss was scaled: once is right."""
    num_backwards: int = field(default=0, init=False)
    """How often a scaled loss went backward, to the end: once is right."""
    share: Tensor | None = field(default=None, init=False, repr=False)
    """What the backward began with at the scaled loss, on the device: accelerate divides by `count`."""
    is_through: bool = field(default=False, init=False)
    """Whether `accumulate` has ended."""
    out_of_memory: str | None = field(default=None, init=False)
    is_ambiguous: bool = field(default=False, init=False)
    failed_elsewhere: bool = field(default=False, init=False)
    """It is another rank that ran out of memory."""
    timing: Timing | None = field(default=None, init=False, repr=False)
    """Of its forward and backward, once they are queued."""

    @property
    def which(self) -> str:
        """For messages."""
        return f"micro-batch {self.index + 1} of {self.count}"

    @property
    def is_dummy(self) -> bool:
        """Whether it counts for nothing."""
        return self.scale == 0

    def scaled(self, loss: Tensor, noted: Tensor | None = None) -> Tensor:
        """The summed loss as `accelerator.backward` takes it: noted for the log, and multiplied by `scale`, once.

        `noted` is what the log is told where it is not what is differentiated (as with cached representations).

        Raises:
            UserError: if the loss is no tensor, or not a single number.
        """
        if not isinstance(loss, Tensor):
            raise UserError(f"a loss of the type {type(loss).__name__}: has to be a tensor, what the model computed")
        if loss.numel() != 1:
            raise UserError(
                f"a loss of the shape {tuple(loss.shape)}: has to be a single number, the sum over the micro-batch; "
                "add it up: `loss.sum()`"
            )
        self.num_scaled += 1
        if not self.is_no_grad_pass:
            self.execution.note(loss if noted is None else noted)
            if self.execution.window.step == 1:
                self.execution.trained.look_at(loss)
        scaled = loss * self.scale
        if scaled.requires_grad:
            scaled.register_hook(self._begin_backward)
        return scaled

    def _begin_backward(self, gradient: Tensor) -> None:
        self.share = gradient.detach()
        # Run by autograd when this backward is through; not if an error ends it, which the loop may have caught.
        torch.autograd.Variable._execution_engine.queue_callback(self._end_backward)  # type: ignore[attr-defined]

    def _end_backward(self) -> None:
        self.num_backwards += 1

    def check_complete(self) -> None:
        """Refuse a micro-batch whose loss was not scaled just once, or did not go backward: its gradient is wrong.

        Raises:
            UserError: saying what is missing.
        """
        which, way_out = self.which, "run `accelerator.backward(micro_batch.scaled(loss))` once in each"
        if self.num_scaled > 1:
            raise UserError(
                f"{which} scaled {self.num_scaled} losses: has to be one, or the logged loss is wrong; add them up, "
                f"and {way_out}"
            )
        if self.num_scaled == 0:
            raise UserError(f"{which} ended without `micro_batch.scaled(loss)`: its loss is not known; {way_out}")
        if self.num_backwards == 0:
            raise UserError(f"{which} ended without the backward of its scaled loss; {way_out}")
        if self.num_backwards > 1:
            raise UserError(f"{which} ran {self.num_backwards} backwards: its gradient is in there twice; {way_out}")


class Rehearsal(Protocol):
    """Runs some micro-batches of a window without a graph first, which the loop does not see, and no other rank."""

    def needs(self, piece: Piece) -> bool:
        """Whether a micro-batch of these is to be run so."""
        ...

    def run(self, micro_batch: MicroBatch) -> None:
        """Run one, through `accumulate`."""

    def batch(self, micro_batch: MicroBatch) -> Any:
        """The batch with which a micro-batch comes to the loop, when all have run that are to."""


@dataclass(eq=False)
class WindowExecution:
    """One run of a window: its attempts, the cut and the padding of the last one, its losses, its replays.

    >>> import torch
    >>> from accelerate import Accelerator
    >>> from hf_accum import WindowExecution, windows_of
    >>> (execution,) = windows_of(Accelerator(cpu=True), [torch.ones(3, 1)], batches_per_step=1)
    >>> isinstance(execution, WindowExecution), execution.window.num_items, execution.is_done
    (True, 3.0, False)
    """

    window: Window
    collate: Callable[[Piece, int], Any] = field(default=lambda piece, length: None, repr=False)
    """Makes a micro-batch's batch of its examples and their padded length."""
    made_ahead: MadeAhead | None = field(default=None, repr=False)
    cut: Callable[[Window, Cutter], Cut] = field(default=cut_window, repr=False)
    """Into the pieces of a forward each."""
    cutters: dict[int, Cutter] = field(default_factory=dict, repr=False)
    """By the most examples of a forward that they were made of: what one learns is for the windows after it, too."""
    rehearsal: Rehearsal | None = field(default=None, repr=False)
    seconds_waited: float = 0.0
    """For data."""
    num_micro_batches: int = field(default=0, init=False)
    num_padded_tokens: int = field(default=0, init=False)
    num_oom_replays: int = field(default=0, init=False)
    is_done: bool = field(default=False, init=False)
    """Whether it went through, and has its step (unless it was left out): a run goes on behind it."""
    last_replay: str = field(default="", init=False)
    statistics_before: list[tuple[Tensor, Tensor]] = field(default_factory=list, init=False, repr=False)
    """The running statistics of the model's layers, each with its value before the window."""
    settings_before: Callable[[], None] | None = field(default=None, init=False, repr=False)
    """Gives accelerate the settings back that it had before the window."""
    drop_gradients: Callable[[], None] | None = field(default=None, init=False, repr=False)
    """Leaves nothing of the window in the model; from its first micro-batch on."""
    shares: list[Tensor] = field(default_factory=list, init=False, repr=False)
    """What each backward of the attempt began with at its scaled loss."""
    guard: WindowGuard | None = field(default=None, init=False, repr=False)
    """Of the attempt."""
    trained: TrainedTensors = field(default_factory=TrainedTensors, init=False, repr=False)
    """What the first losses of the first window train, for all the others."""
    _losses: list[Tensor] = field(default_factory=list, init=False, repr=False)

    def micro_batches(
        self, capacity: Cutter | WorkingCapacity | int = sys.maxsize, no_grad_pass: Ranks | None = None
    ) -> Iterator[MicroBatch]:
        """This rank's micro-batches, of similar length, each at most as large as the capacity for its length.

        The capacity is the most examples of one forward, or what the tuner found. Without one: as large as they come.

        If memory runs out in one, `accumulate` drops the gradients of the window and the micro-batches start
        again from the first, over the same examples, in pieces that the corrected capacity allows.

        With `no_grad_pass` all of them come without a graph before they come with one, on all the ranks together: if
        one runs out of memory, all start again. A collective at the end of each pass.

        A loop that ends before the last one (`break`, an error) leaves no gradients of the window behind.

        Raises:
            OutOfMemory: if a single example does not fit, tried twice.
            UserError: if the window was run already, a micro-batch was not run through `accumulate`, or the capacity
                is none.
        """
        if self.is_done:
            raise UserError(
                f"window {self.window.step} was run already: its gradient would be in there twice; run each once"
            )
        if isinstance(capacity, (Cutter, WorkingCapacity)):
            cutter = Cutter.of(capacity)
        elif hasattr(capacity, "__index__"):  # of numpy too
            most = operator.index(capacity)
            cutter = self.cutters.setdefault(most, Cutter.of(most))
        else:
            raise UserError(
                f"a capacity of {capacity!r}: has to be the most examples of one forward, a whole number, or what "
                "`find_capacity` gave"
            )
        retry_ambiguous = True
        tried_alone: set[str] = set()
        try:
            while True:
                failed = None
                for micro_batch in self._attempt(cutter, retry_ambiguous, no_grad_pass):
                    if self.rehearsal is not None and micro_batch.is_no_grad_pass:
                        self.rehearsal.run(micro_batch)
                    else:
                        yield micro_batch
                    if not micro_batch.is_through and micro_batch.out_of_memory is None:
                        raise UserError(
                            f"{micro_batch.which} was not run to the end of `accumulate` before the next was asked "
                            "for: run each of them, one after the other, inside `with accumulate(...)`, and let "
                            "its errors end the loop"
                        )
                    if micro_batch.out_of_memory is not None:
                        failed = micro_batch
                        break
                    counts = not micro_batch.is_dummy and not micro_batch.is_no_grad_pass
                    if cutter.costs is not None and micro_batch.timing is not None and counts:
                        cutter.costs.observe(len(micro_batch.examples), micro_batch.length, micro_batch.timing)
                if failed is None:
                    self.is_done = True
                    cutter.window_done()
                    return
                if not failed.failed_elsewhere:
                    self._correct(cutter, failed, tried_alone)
                    retry_ambiguous = retry_ambiguous and not failed.is_ambiguous
        finally:
            if not self.is_done and self.drop_gradients is not None:
                self.drop_gradients()
            self.restore_settings()

    def _correct(self, cutter: Cutter, failed: MicroBatch, tried_alone: set[str]) -> None:
        """Have smaller pieces cut after one that ran out of memory; of a single example the same again, once."""
        num_examples, length = len(failed.examples), failed.length
        if num_examples == 1 and failed.examples[0].id in tried_alone:
            raise OutOfMemory(
                f"a single example{cutter.lengths.of(length)} does not fit into memory ({failed.out_of_memory}); "
                f"{cutter.lengths.what_needs_less}"
            )
        if num_examples == 1:
            tried_alone.add(failed.examples[0].id)
        cutter.capacity.out_of_memory(num_examples, length)
        self.num_oom_replays += 1
        self.last_replay = (
            f"memory ran out at {num_examples} examples{cutter.lengths.of(length)} "
            f"({failed.out_of_memory}): the window starts anew, with at most "
            f"{cutter.capacity.num_examples(length)} of that length at once"
        )

    def _attempt(self, cutter: Cutter, retry_ambiguous: bool, no_grad_pass: Ranks | None) -> Iterator[MicroBatch]:
        window = self.window
        ahead, self.made_ahead = self.made_ahead, None
        if ahead is not None and not ahead.cut.is_that_of(cutter):
            ahead = None
        pieces = self.cut(window, cutter).pieces if ahead is None else ahead.cut.pieces
        lengths = [cutter.padded(max(example.length for example in piece)) for piece in pieces]
        batches = map(self.collate, pieces, lengths) if ahead is None else ahead.batches
        has_any = bool(window.examples)
        self.num_micro_batches = len(pieces) if has_any else 0
        padded = (len(piece) * length for piece, length in zip(pieces, lengths, strict=True))
        self.num_padded_tokens = sum(padded) if has_any else 0
        self._losses.clear()
        self.shares.clear()
        self.statistics_before = []
        runs_first = self.rehearsal.needs if self.rehearsal is not None else lambda piece: no_grad_pass is not None
        first = [index for index, piece in enumerate(pieces) if runs_first(piece)]
        passes: list[tuple[bool, Sequence[int], Iterable[Any]]] = [(False, range(len(pieces)), batches)]
        if first:
            kept = list(batches)
            passes = [(True, first, [kept[index] for index in first]), (False, range(len(pieces)), kept)]
        for is_no_grad_pass, indices, made in passes:
            for number, (index, batch) in enumerate(zip(indices, made, strict=True)):
                micro_batch = MicroBatch(
                    self,
                    pieces[index],
                    number,
                    count=len(indices),
                    scale=len(pieces) / window.num_items if has_any else 0.0,
                    seed=derive_seed(window.seed, "micro-batch", window.rank, index),
                    length=lengths[index],
                    batch=batch,
                    retry_ambiguous=retry_ambiguous,
                    is_no_grad_pass=is_no_grad_pass,
                    tell=None if no_grad_pass is None else partial(_tell, no_grad_pass),
                )
                if self.rehearsal is not None and not is_no_grad_pass:
                    micro_batch.batch = self.rehearsal.batch(micro_batch)
                yield micro_batch

    def note(self, loss: Tensor) -> None:
        """Take note of a micro-batch's summed loss, without waiting for the device."""
        if self.window.examples:
            self._losses.append(loss.detach())

    def loss_sum(self) -> Tensor | float:
        """This rank's part of the window's summed loss, on the device."""
        return sum(self._losses[1:], start=self._losses[0]) if self._losses else 0.0

    def restore_statistics(self) -> None:
        """Make the running statistics those that they were before the window."""
        with torch.no_grad():
            for statistic, before in self.statistics_before:
                statistic.copy_(before)

    def restore_settings(self) -> None:
        """Give accelerate the settings back that `accumulate` changed for this window; watch it no more."""
        if self.guard is not None:
            self.guard.close()
        if self.settings_before is not None:
            self.settings_before()
            self.settings_before = None


def _tell(ranks: Ranks, came_through: bool) -> bool:
    return all(said == [1] for said in ranks.gather([int(came_through)]))
