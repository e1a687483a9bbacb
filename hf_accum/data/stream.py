"""A streamed dataset as windows: split over ranks, shuffled in blocks, every example once an epoch.

`hf_accum.data.shuffling` says in which order a rank reads. Two ways to split over ranks:

- `examples`: one order, common to all ranks. Each rank reads all rows, and keeps and tokenises its share of each
  window. The windows are the same on any number of ranks.
- `shards`: each rank reads its own shards only. The ranks announce how many examples they have ready, so that
  each window is full as long as there are examples anywhere, however uneven the shards are.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from typing import Any, Generic, Literal, TypeVar

from hf_accum.accumulation.example import Example
from hf_accum.accumulation.load_balancing import balanced
from hf_accum.accumulation.time_model import Speed
from hf_accum.accumulation.window import Window
from hf_accum.data.mixed_order import in_mixture
from hf_accum.data.mixture import Mixture
from hf_accum.data.prefetch import prefetched
from hf_accum.data.reading import EMPTY, PieceOfData, Reader
from hf_accum.data.shuffling import START, Order, Place
from hf_accum.data.source import Row, Source
from hf_accum.data.stream_state import StreamCounts, StreamState, gathered, of_this_rank
from hf_accum.data.window_sync import Facts, agree, leave, share_out
from hf_accum.distributed.ranks import Ranks
from hf_accum.errors import ReadingFailed, UserError
from hf_accum.seeding import derive_seed

T = TypeVar("T")
Split = Literal["examples", "shards"]


_Part = tuple[int, int, tuple[Example, ...], Place, Facts]  # epoch, size of the window, this rank's examples


class WindowStream(Generic[T]):
    """Iterate over it to get this rank's part of each window, in step with the other ranks.

    `prepare` makes of a row what is kept of it (None leaves the row out; `BadRow` names what is wrong);
    `encode` turns a list of (id, prepared row) into examples, in a background thread. One small collective per
    window agrees on its weight, its counts and the end of the data.

    `draw(example, epoch)` draws what is random in an example (what is masked, say) anew in each pass.

    Where rows are skipped that are bad, and are more than `max_skipped_share` of all, that is an error.

    With `balance`, which gives the predicted times of micro-batches on this rank at a step, the examples of a window
    are evened out over the ranks.

    It may be iterated in a thread of its own: making a stream, which all ranks do in the same order, gives it a way
    to talk of its own. Ranks that leave the iteration all leave it at the same step.

    Of a `mixture` of datasets (`source` is all of them, joined) a window has the shares that it says. `shards`: of
    the source those that are read, all by default.

    `stopping` is asked before each window is agreed on, whether this rank wants to end (and stays True then): the
    first window for which any rank does is the last one, on all of them. A `Pipeline` is ahead of the device: what it
    has made by then is still used. `stop_is_agreed` says on all ranks alike whether one was, by then.

    A window whose total weight is zero has no gradient: it is left out and counted (`skip_weightless`).

    `state_dict` is the place in the data behind the window that was given last; a stream that loads it goes on there.
    """

    def __init__(
        self,
        source: Source,
        prepare: Callable[[Row], T | None],
        encode: Callable[[Sequence[tuple[str, T]]], list[Example]],
        *,
        ranks: Ranks,
        effective_batch_size: int,
        seed: int,
        num_epochs: int | None = 1,
        split: Split = "examples",
        shuffle_block_size: int = 10_000,
        on_bad_row: Literal["error", "skip"] = "error",
        max_skipped_share: float | None = None,
        prefetch_windows: int = 4,
        skip_weightless: bool = True,
        draw: Callable[[Example, int], Example] | None = None,
        balance: Callable[[int], Speed] | None = None,
        stopping: Callable[[], bool] | None = None,
        mixture: Mixture | None = None,
        shards: range | None = None,
    ) -> None:
        if effective_batch_size < 1:
            raise UserError(f"effective batch size {effective_batch_size}: has to be at least 1")
        if shuffle_block_size < 1:
            raise UserError(f"shuffle block size {shuffle_block_size}: has to be at least 1 (1: in file order)")
        self.source = source
        self.prepare = prepare
        self.encode = encode
        self.ranks = ranks
        self.effective_batch_size = effective_batch_size
        self.seed = seed
        self.num_epochs = num_epochs
        self.split: Split = split
        self.shuffle_block_size = shuffle_block_size
        self.on_bad_row: Literal["error", "skip"] = on_bad_row
        self.prefetch_windows = prefetch_windows
        self.skip_weightless = skip_weightless
        self.draw = draw
        self.balance = balance if ranks.count > 1 else None
        self.stopping = stopping
        self.stop_is_agreed = False
        self.start = self._state = StreamState()
        self.counts = self.start.counts.copy()
        """Of all windows so far."""
        self.failure: Exception | None = None
        """What ended it before its time: data that cannot be read, on whichever rank."""
        self.shards = shards
        order = Order(
            source,
            prepare,
            seed,
            shuffle_block_size,
            on_bad_row,
            of_ranks=(ranks.index, ranks.count) if split == "shards" else None,
            max_skipped_share=max_skipped_share,
            shards=shards,
        )
        self._order = in_mixture(order, mixture)
        self._group = ranks.new_group()
        self._is_running = False

    def __iter__(self) -> Iterator[Window]:
        """The windows of all epochs, numbered from 1.

        Raises:
            UserError: for a bad row (unless skipped), or a dataset without any example.
            RankFailed: if that happened on another rank, or one left the iteration.
        """
        self._is_running = True
        try:
            yield from self._windows()
        except GeneratorExit:
            leave(self._group)
            raise
        finally:
            self._is_running = False

    def _windows(self) -> Iterator[Window]:
        self.counts = self.start.counts.copy()
        dummy: Example | None = None
        step = self.start.step + 1
        in_common = self.split == "examples"
        reader = Reader(
            self._order, self.encode, self.draw, self.ranks, self.effective_batch_size, self.num_epochs, self.start
        )
        produce = reader.windows if in_common else reader.shards
        with closing(prefetched(produce, self.prefetch_windows)) as pieces:
            windows = self._common_windows(pieces) if in_common else self._windows_of_shards(reader, pieces)
            for epoch, window_size, examples, place, facts in _up_to_stop(windows):
                self.counts.num_examples += window_size
                if facts.num_items == 0 and self.skip_weightless:
                    self.counts.num_weightless_windows += 1
                    continue
                if dummy is None:
                    dummy = examples[0] if examples else self.first_example()
                if self.balance is not None:
                    examples = balanced(examples, facts.counts, self.balance(step), self._group)
                self._state = StreamState(step, place, self.counts.copy())
                yield Window(
                    step=step,
                    epoch=epoch,
                    seed=derive_seed(self.seed, "window", step),
                    examples=examples,
                    dummy=dummy,
                    rank=self.ranks.index,
                    num_examples=window_size,
                    num_items=facts.num_items,
                    num_tokens=facts.num_tokens,
                    digest=facts.digest,
                    state=self._state,
                )
                step += 1

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes. A collective: the states of all ranks, of which each takes its own.

        Ask a `Pipeline` where one is used: the stream is ahead of it.
        """
        return gathered(self._state, self.ranks)

    def load_state_dict(self, state: Mapping[str, Any], *, new_order: bool = False) -> None:
        """Go on behind the window of a state, on any number of ranks; before the stream is iterated.

        `new_order`: the examples come in another order than then, and the pass that was begun starts anew.

        Raises:
            UserError: while it is iterated.
            KeyError, TypeError, ValueError: if it is no such thing.
        """
        if self._is_running:
            raise UserError(
                "the state of the windows cannot be loaded while they are iterated: the loop would go on with the "
                "old ones; end it, load the state, and begin a new loop"
            )
        self.start = self._state = of_this_rank(state, self.ranks, new_order=new_order)
        self.counts = self.start.counts.copy()

    def bad_rows(self, counts: StreamCounts | None = None) -> Counter[str]:
        """The bad rows left out so far over all ranks, by their reason; or those of counts. A collective."""
        counters = self.ranks.gather_objects((counts or self.counts).bad_rows)
        # In `examples` each rank has read all rows, and so has counted each bad one.
        return counters[0] if self.split == "examples" else sum(counters, start=Counter())

    # One common order

    def _common_windows(self, pieces: Iterator[PieceOfData]) -> Iterator[_Part]:
        counted = self._counted(pieces)
        while True:
            piece, facts = self._agree(counted, lambda piece: (piece.examples, piece.window_size))
            if facts.is_end:
                return
            if set(facts.announced) != {facts.num_examples}:
                raise UserError(
                    f"the ranks read different data: their next windows have {facts.announced} examples; each "
                    "rank has to see the same dataset"
                )
            assert piece is not None
            yield piece.epoch, piece.window_size, piece.examples, piece.places[0], facts

    def _counted(self, pieces: Iterator[PieceOfData]) -> Iterator[PieceOfData]:
        for piece in pieces:
            self.counts.bad_rows += piece.bad_rows
            if not piece.ends_epoch:
                yield piece

    # Shards of one's own

    def _windows_of_shards(self, reader: Reader[T], pieces: Iterator[PieceOfData]) -> Iterator[_Part]:
        nothing: Counter[str] = Counter()
        ready: deque[tuple[Example, Place, Counter[str]]] = deque()
        for epoch, first in reader.epochs():
            ended: PieceOfData | None = None
            place = first if first != START else Place(epoch)
            quota = 0  # the first exchange of an epoch only announces
            while True:
                taken = [ready.popleft() for _ in range(quota)]
                mine = tuple(example for example, _, _ in taken)
                if taken:
                    place = taken[-1][1]
                self.counts.bad_rows += sum((bad_rows for _, _, bad_rows in taken), start=nothing)

                def announce(epoch: int = epoch, mine: tuple[Example, ...] = mine) -> Iterator[PieceOfData]:
                    nonlocal ended
                    while ended is None and len(ready) < self.effective_batch_size:
                        piece = next(pieces)
                        # Counted with the first of the examples among which they stood.
                        of_each = [piece.bad_rows, *[nothing] * (len(piece.examples) - 1)]
                        ready.extend(zip(piece.examples, piece.places, of_each, strict=False))
                        ended = piece if piece.ends_epoch else None
                    yield PieceOfData(epoch, mine, nothing, ())

                # What is ready beyond a window depends on how far was read, and is nobody's business.
                _, facts = self._agree(
                    announce(), lambda piece: (piece.examples, min(len(ready), self.effective_batch_size))
                )
                if facts.num_examples:
                    yield epoch, facts.num_examples, mine, place, facts
                elif facts.is_end and not reader.was_begun(epoch):
                    raise UserError(EMPTY)
                quotas = share_out(self.effective_batch_size, facts.announced)
                if sum(quotas) == 0:
                    break
                quota = quotas[self.ranks.index]
            self.counts.bad_rows += ended.bad_rows if ended is not None else nothing

    def first_example(self) -> Example:
        """The first example in the order of the files.

        Raises:
            UserError: if there is none.
        """
        (example,) = self.first_examples(1)
        return example if self.draw is None else self.draw(example, 0)

    def first_examples(self, number: int) -> list[Example]:
        """The first ones in the order of the files, fewer where there are no more, before anything random is drawn.

        Raises:
            UserError: if there is none.
        """
        items = self._first_items(number)
        if items:
            return self.encode(items)
        raise UserError(EMPTY)

    def has_examples(self) -> bool:
        """Whether there is any."""
        return bool(self._first_items(1))

    def _first_items(self, number: int) -> list[tuple[str, T]]:
        in_file_order = Order(self.source, self.prepare, self.seed, 1, self.on_bad_row, shards=self.shards)
        return list(islice((item for block in in_file_order.blocks(0) for item in block.items), number))

    def _agree(
        self,
        pieces: Iterator[PieceOfData],
        describe: Callable[[PieceOfData], tuple[tuple[Example, ...], int]],
    ) -> tuple[PieceOfData | None, Facts]:
        """Take the next piece and tell the other ranks of it: its examples, and a number to announce."""
        error: Exception | None = None
        piece: PieceOfData | None = None
        try:
            piece = next(pieces, None)
        except Exception as failure:
            error = failure
        examples, announced = describe(piece) if piece is not None else ((), 0)
        is_stop_asked = self.stopping is not None and self.stopping()
        try:
            facts = agree(self._group, examples, announced, error, is_stop_asked)
        except Exception as failure:
            if failure is error or isinstance(failure, ReadingFailed):
                self.failure = failure
            raise
        self.stop_is_agreed = facts.is_stop_asked
        self.counts.num_truncated_examples += facts.num_truncated_examples
        self.counts.num_truncated_tokens += facts.num_truncated_tokens
        return piece, facts


def _up_to_stop(windows: Iterator[_Part]) -> Iterator[_Part]:
    """The windows up to the first one for which a rank was asked to stop, that one included."""
    for window in windows:
        yield window
        if window[-1].is_stop_asked:
            return
