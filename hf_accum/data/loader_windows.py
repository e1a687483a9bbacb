"""The windows of a loader's passes: which examples each has on this rank, and the place in the data behind it."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hf_accum.accumulation.batch_parts import first_row, rows_of, to_device, weight_of
from hf_accum.accumulation.example import Example
from hf_accum.accumulation.execution import WindowExecution
from hf_accum.accumulation.splitting import Cutter
from hf_accum.accumulation.window import Window
from hf_accum.accumulation.window_cut import Piece, cut_batches
from hf_accum.data.loader_feed import Feed, Rows
from hf_accum.data.loader_reading import LoaderReading, is_dispatched, is_shared_out, repeats_examples
from hf_accum.data.window_sync import Facts, agree, leave
from hf_accum.distributed.ranks import Ranks
from hf_accum.errors import RankFailed, UserError
from hf_accum.seeding import derive_seed


@dataclass(frozen=True)
class _Place:
    """The pass, the windows of it that were taken (those that were left out too), and the steps of all passes."""

    epoch: int
    num_taken: int
    step: int
    passed: int = 0  # a checksum of the batches up to here, of this rank


class LoaderWindows:
    """Iterate over it to get the windows of one pass, and again for those of the next; `windows_of` makes it.

    It goes on behind the last window that went through. `state_dict` is that place, in the middle of a pass too, and
    `accelerator.register_for_checkpointing(windows)` keeps it with `save_state`. It is the same on all ranks, and for
    as many of them; for any number where they share out `examples_per_step` of a common loader. A resumed pass reads
    the batches before the place again, and leaves them out.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        ranks: Ranks,
        device: torch.device,
        *,
        batches_per_step: int | None,
        examples_per_step: int | None,
        weight: Callable[[Any], float | Tensor],
        length: Callable[[Any], int],
        seed: int,
        number: int = 0,
    ) -> None:
        sizes = {"batches_per_step": batches_per_step, "examples_per_step": examples_per_step}
        given = {name: size for name, size in sizes.items() if size is not None}
        if len(given) != 1:
            raise UserError(
                f"{', '.join(f'`{name}` {size}' for name, size in sizes.items())}: one of the two has to be given, "
                "the size of a window"
            )
        ((name, size),) = given.items()
        if size < 1:
            raise UserError(f"`{name}` {size}: has to be at least 1")
        if examples_per_step is not None and examples_per_step < ranks.count:
            raise UserError(
                f"`examples_per_step` {examples_per_step}: has to be at least one for each of the {ranks.count} ranks"
            )
        self.batches_per_step = batches_per_step
        self.examples_per_step = examples_per_step
        self.num_weightless_windows = 0
        """Left out, for nothing in them counts."""
        self.number = number
        """Of the loader among the accelerator's: where one is made in each epoch, each is shuffled differently."""
        self._reading = LoaderReading(loader, derive_seed(seed, "loader", number) if number else seed)
        self._ranks = ranks
        self._device = device
        self._weight = weight
        self._length = length
        self._seed = seed
        self._is_common = not is_shared_out(loader)
        self._is_dealt = ranks.count > 1 and self._is_common
        self._before = _Place(0, 0, 0)
        self._last: tuple[WindowExecution, _Place] | None = None
        self._dummy: Example | None = None
        self._cutters: dict[int, Cutter] = {}
        if ranks.count > 1 and is_dispatched(loader) and examples_per_step is not None:
            raise UserError(
                f"`examples_per_step` {examples_per_step} with a loader of which rank 0 reads for all: the ranks "
                "have to ask for its batches together; give `batches_per_step`, or the loader as it was before"
            )
        if ranks.count > 1 and repeats_examples(loader):
            warnings.warn(
                "the prepared loader repeats examples at the end of a pass, so that all ranks have equally many "
                "batches: give `windows_of` the loader as it was before, which it shares out itself, or prepare it "
                "with `DataLoaderConfiguration(even_batches=False)`",
                stacklevel=3,
            )

    def follow(self, before: "LoaderWindows") -> None:
        """Begin with the pass after that of others over the same loader, and count on."""
        place = before._place
        self._before = _Place(place.epoch + (place.num_taken > 0), 0, place.step)

    @property
    def epoch(self) -> int:
        """The pass of the last window that went through; after the pass, the next one."""
        return self._place.epoch

    @property
    def step(self) -> int:
        """The windows that went through, of all passes."""
        return self._place.step

    @property
    def _place(self) -> _Place:
        if self._last is not None and self._last[0].is_done:
            return self._last[1]
        return self._before

    def __iter__(self) -> Iterator[WindowExecution]:
        """The windows that are left of this pass; of the next one, where none is.

        Raises:
            UserError: for a loader without batches, and as `windows_of` says.
            RankFailed: if that happened on another rank, or one left the iteration.
        """
        try:
            yield from self._windows()
        except GeneratorExit:
            if self._last is None or self._last[0].is_done:
                leave(self._ranks)  # of a window that was not run to its end they wait elsewhere: for its gradient
            raise

    def _windows(self) -> Iterator[WindowExecution]:
        place = self._before = self._place
        self._last = None
        feed = Feed(self._reading.batches(place.epoch), self._ranks if self._is_dealt else None)
        for _ in range(place.num_taken):
            self._take(feed)
        if self._ranks.index == 0 and feed.passed != place.passed:  # the state is that of rank 0
            warnings.warn(
                f"the first {place.num_taken} windows of this pass are not those that were left out: the loader gave "
                "other batches than before, so that some come twice and others never; what draws their order has to "
                "have a `torch.Generator` called `generator`, `set_epoch`, or none of its own",
                stacklevel=3,
            )
        while True:
            examples, facts, num_examples = self._agreed(feed, place)
            if facts.is_end:
                if place.num_taken == 0:
                    raise UserError("the loader has no batch: it has to have at least one")
                if self._last is None or self._last[0].is_done:
                    self._before, self._last = _Place(place.epoch + 1, 0, place.step), None
                return
            place = replace(place, num_taken=place.num_taken + 1, passed=feed.passed)
            if facts.num_items == 0:
                self.num_weightless_windows += 1
                continue
            place = replace(place, step=place.step + 1)
            window = self._window(place, examples, facts, num_examples)
            execution = WindowExecution(window, self._collate, cut=cut_batches, cutters=self._cutters)
            self._before, self._last = self._place, (execution, place)
            yield execution

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes: the place behind the last window that went through, and what fits."""
        return {
            "place": asdict(self._place),
            "batches_per_step": self.batches_per_step,
            "examples_per_step": self.examples_per_step,
            "num_ranks": self._ranks.count,
            "seed": self._seed,
            "num_weightless_windows": self.num_weightless_windows,
            "reading": self._reading.state_dict(),
            "cutters": {most: cutter.state_dict() for most, cutter in self._cutters.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on behind the window of a state, with a new iteration.

        Raises:
            UserError: if the state is of windows of another size, on another number of ranks, or of another seed.
            KeyError, TypeError: if it is no such thing.
        """
        own = self.state_dict()
        same_on_all = self._is_common and self.examples_per_step is not None
        for name in ("batches_per_step", "examples_per_step", "seed", *([] if same_on_all else ["num_ranks"])):
            if state[name] != own[name]:
                raise UserError(
                    f"the state of these windows has `{name}` {state[name]}, and they have {own[name]}: the place in "
                    "the data would be another one; go on with the same, or begin anew"
                )
        self._reading.load_state_dict(state["reading"])
        for most, of_cutter in state["cutters"].items():
            self._cutters.setdefault(most, Cutter.of(most)).load_state_dict(of_cutter)
        self._before, self._last = _Place(**state["place"]), None
        self.num_weightless_windows = state["num_weightless_windows"]

    def _take(self, feed: Feed) -> list[Rows]:
        if self.batches_per_step is not None:
            return feed.batches(self.batches_per_step)
        assert self.examples_per_step is not None
        if self._is_dealt:
            return feed.rows(self.examples_per_step)
        share, others = divmod(self.examples_per_step, self._ranks.count)
        return feed.rows(share + (self._ranks.index < others))

    def _agreed(self, feed: Feed, place: _Place) -> tuple[list[Example], Facts, int]:
        """This rank's part of the next window, and what it holds over all ranks. A collective."""
        rows: list[Rows] = []
        examples: list[Example] = []
        error: Exception | None = None
        try:
            rows = self._take(feed)
            examples = [self._example(one, place.epoch) for one in rows]
        except Exception as failure:
            error = failure
        facts = agree(self._ranks, examples, sum(one.count for one in rows), error)
        if self._is_dealt and len({tuple(said) for said in self._ranks.gather([feed.seen])}) != 1:
            raise UserError(
                f"the ranks read different batches at step {place.step + 1} of a loader that accelerate has not "
                "prepared: it has to be the same on all of them, in the same order; or prepare it"
            )
        if self._dummy is None and not facts.is_end:
            self._dummy = self._find_dummy(examples, feed, place.epoch)
        feed.first = None  # not to keep it any longer
        return examples, facts, sum(facts.announced)

    def _find_dummy(self, examples: list[Example], feed: Feed, epoch: int) -> Example:
        rows = examples[0].parts[0].features["batch"] if examples else feed.first
        first = None if rows is None else self._example(Rows(first_row(rows), 0), epoch)
        has_one = [bool(said) for (said,) in self._ranks.gather([int(first is not None)])]
        if first is None:
            raise UserError(
                f"rank {self._ranks.index} has no batch at all: each rank has to have one, for a forward that counts "
                "for nothing; give fewer ranks, or a loader that is not prepared"
            )
        if not all(has_one):
            raise RankFailed(f"rank {has_one.index(False)} has no batch at all: see its error")
        return first

    def _example(self, rows: Rows, epoch: int) -> Example:
        """A batch as an example, whose parts are its rows."""
        length = int(self._length(rows.batch))
        weight = weight_of(rows.batch, self._weight, f"batch {rows.number + 1}")
        name = f"{epoch}/{rows.number}"
        parts = tuple(
            Example(f"{name}/{rows.start + row}", length, 0.0, {"batch": rows.batch, "row": row})
            for row in range(rows.count)
        )
        return Example(f"{name}/{rows.start}", rows.count * length, weight, {}, parts=parts)

    def _window(self, place: _Place, examples: list[Example], facts: Facts, num_examples: int) -> Window:
        assert self._dummy is not None
        return Window(
            step=place.step,
            epoch=place.epoch,
            seed=derive_seed(self._reading.seed, "window", place.step),
            examples=tuple(examples),
            dummy=self._dummy,
            rank=self._ranks.index,
            num_examples=num_examples,
            num_items=facts.num_items,
            num_tokens=facts.num_tokens,
            digest=facts.digest,
        )

    def _collate(self, piece: Piece, length: int) -> Any:
        first = piece[0].features
        return to_device(rows_of(first["batch"], first["row"], first["row"] + len(piece)), self._device)
