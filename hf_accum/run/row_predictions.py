"""The rows of a dataset with what a model predicts of each: in their order, each once, on any number of ranks."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import nn

from hf_accum.accumulation.example import inputs_of
from hf_accum.accumulation.splitting import Cutter
from hf_accum.data.formats.rows import BadColumn, BadRow, Row, check_unicode
from hf_accum.data.skipped_rows import ENOUGH, check_share
from hf_accum.data.source import MOST_REASONS, OTHER_REASONS, Source, refused
from hf_accum.distributed.collectives import on_all_ranks, on_rank_0
from hf_accum.distributed.ranks import Ranks
from hf_accum.durations import clock
from hf_accum.errors import UserError, shortened
from hf_accum.evaluation.run_over import in_pieces
from hf_accum.models.modes import keeping_modes
from hf_accum.run.row_output import Place, RowOutput
from hf_accum.run.signals import StopRequest
from hf_accum.tasks.prediction import Predictor, Told

T = TypeVar("T")
_FIRST, _LEAST = 64, 16
_SHORT_SECONDS, _LONG_SECONDS = 5.0, 30.0
_SAY_EVERY_SECONDS = 10.0


@dataclass(frozen=True)
class RowModel(Generic[T]):
    """A trained model, and what it tells of rows, in batches of similar lengths that fit."""

    model: nn.Module
    predictor: Predictor[T]
    cutter: Cutter

    def told(self, rows: Sequence[T]) -> list[tuple[Told, int]]:
        """Of prepared rows, in their order: what is told of each, and how many tokens of it were cut off.

        Raises:
            OutOfMemory: if a single row does not fit.
        """
        predictor, model = self.predictor, self.model
        if not rows:
            return []
        examples = predictor.encode([(str(number), row) for number, row in enumerate(rows)])
        device = next(model.parameters()).device
        outputs: dict[str, Any] = {}

        def forward(batch: Any, length: int) -> dict[str, Any]:
            return dict(zip([one.id for one in batch], predictor.forward(model, batch, length), strict=True))

        with keeping_modes(model), torch.no_grad():
            model.eval()
            for of_batch in in_pieces(inputs_of(examples), forward, self.cutter, device, during="predicting"):
                outputs |= of_batch
        self.cutter.window_done()
        return [
            (
                predictor.told(example, [outputs[part.id] for part in inputs_of([example])]),
                example.num_truncated_tokens,
            )
            for example in examples
        ]


@dataclass(frozen=True)
class Asked:
    """How the rows of a dataset are gone through; `num_rows` is about how many there are, if that is known."""

    on_bad_row: Literal["error", "skip"]
    max_skipped_share: float
    num_rows: int | None = None


@dataclass(frozen=True)
class _Done:
    """A row by its place among those at hand: itself and what is added to it, or why it is left out."""

    place: int
    row: Row
    added: Mapping[str, Any] | None = None
    reason: str = ""
    num_cut: int = 0
    remarks: tuple[str, ...] = ()


def predict_rows(
    row_model: RowModel[Any],
    source: Source,
    output: RowOutput,
    asked: Asked,
    ranks: Ranks,
    stop: StopRequest,
    say: Callable[[str], None],
) -> Place:
    """Go through a dataset from where the output ends, some rows at a time, up to its end or a request to stop.

    Each rank takes every so many rows of these; rank 0 writes them. A collective.

    Raises:
        UserError: for a bad row or column, a row that has a column of those that are added, or a full disk. What was
            written before is kept.
        Stopped: as asked; what is written is kept.
        RankFailed: if another rank failed.
    """
    place, size, before = output.place, _FIRST, output.place.num_rows
    started = said = time.perf_counter()
    rows = _rows_from(source, place)
    while chunk := list(islice(rows, min(size, row_model.predictor.most_rows))):
        own = [(at, *chunk[at]) for at in range(ranks.index, len(chunk), ranks.count)]
        of_ranks = on_all_ranks(ranks, lambda own=own: _timed(lambda: _done(row_model, source, output, asked, own)))
        done = sorted((one for of_rank, _ in of_ranks for one in of_rank), key=lambda one: one.place)
        assert len(done) == len(chunk), "a row was lost"
        shard, number, _ = chunk[-1]
        place = _behind(place, shard, number + 1, done)
        if _num_read(place) >= ENOUGH:
            check_share(_num_read(place), place.bad_rows, asked.max_skipped_share)
        good = [(one.row, one.added) for one in done if one.added is not None]
        on_rank_0(ranks, lambda good=good, place=place: output.add(good, place))
        seconds = max(seconds for _, seconds in of_ranks)
        if seconds < _SHORT_SECONDS:
            size = min(2 * size, row_model.predictor.most_rows)
        elif seconds > _LONG_SECONDS:
            size = max(size // 2, _LEAST)
        stop.window_done()
        if stop.is_asked_of_any(ranks):
            stopped = stop.agreed(ranks)
            assert stopped is not None
            say(f"{stopped}: {place.num_rows:,} rows are kept in {output.folder.name}; the same command goes on")
            raise stopped
        now = time.perf_counter()
        if now - said > _SAY_EVERY_SECONDS:
            said = now
            say(_progress(place, asked.num_rows, (place.num_rows - before) / (now - started)))
    check_share(_num_read(place), place.bad_rows, asked.max_skipped_share)
    if not place.num_rows:
        raise UserError("the dataset has no row: there is nothing to predict")
    on_rank_0(ranks, output.finish)
    return place


def _rows_from(source: Source, place: Place) -> Iterator[tuple[int, int, Row | BadRow]]:
    for shard in range(place.shard, source.num_shards):
        for number, row in source.read(shard, place.number if shard == place.shard else 0):
            yield shard, number, row


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    begun = time.perf_counter()
    return work(), time.perf_counter() - begun


def _done(
    row_model: RowModel[Any],
    source: Source,
    output: RowOutput,
    asked: Asked,
    rows: Sequence[tuple[int, int, int, Row | BadRow]],
) -> list[_Done]:
    """Rows by their place, their shard, their number, themselves."""
    done: list[_Done] = []
    good: list[tuple[int, Row, str]] = []
    prepared: list[Any] = []
    for at, shard, number, row in rows:
        try:
            if isinstance(row, BadRow):
                raise row
            _check_columns(row, row_model.predictor.adds)
            _check_texts(row)
            prepared.append(row_model.predictor.prepare(row))
            good.append((at, row, f"{shard}-{number + 1}"))
        except BadRow as bad:
            if asked.on_bad_row == "error" or isinstance(bad, BadColumn):
                raise refused(source, shard, number, bad) from None
            done.append(_Done(at, {}, reason=str(bad)))
    for (at, row, name), (told, num_cut) in zip(good, row_model.told(prepared), strict=True):
        images = {column: output.save_image(f"{name}.png", image) for column, image in told.images.items()}
        done.append(_Done(at, row, {**told.columns, **images}, num_cut=num_cut, remarks=told.remarks))
    return done


def _check_columns(row: Row, added: Sequence[str]) -> None:
    for column in added:
        if column in row:
            raise BadColumn(
                column, "is in the data, and is what the predictions are called: rename it there, or leave it out"
            )


def _check_texts(row: Row) -> None:
    for column, value in row.items():
        for text in _texts_in([column, value]):
            check_unicode(column, text)


def _texts_in(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case Mapping():
            yield from _texts_in([*value, *value.values()])
        case list() | tuple():
            for item in value:
                yield from _texts_in(item)


def _behind(place: Place, shard: int, number: int, done: Sequence[_Done]) -> Place:
    bad, remarks = Counter(place.bad_rows), Counter(place.remarks)
    for one in done:
        remarks.update(one.remarks)
        if one.added is None:
            bad[one.reason if one.reason in bad or len(bad) < MOST_REASONS else OTHER_REASONS] += 1
    return replace(
        place,
        shard=shard,
        number=number,
        num_rows=place.num_rows + sum(one.added is not None for one in done),
        bad_rows=dict(bad),
        remarks=dict(remarks),
        num_cut=place.num_cut + sum(one.num_cut > 0 for one in done),
        num_tokens_cut=place.num_tokens_cut + sum(one.num_cut for one in done),
    )


def _num_read(place: Place) -> int:
    return place.num_rows + sum(place.bad_rows.values())


def _progress(place: Place, num_rows: int | None, rows_per_second: float) -> str:
    line = f"{place.num_rows:,} rows"
    if num_rows is not None:
        line += f" of about {num_rows:,}"
    line += f", {rows_per_second:,.0f} a second" if rows_per_second >= 10 else f", {rows_per_second:.2g} a second"
    if num_rows is None or not rows_per_second:
        return line
    return f"{line}, {clock(max(0, num_rows - place.num_rows) / rows_per_second)} left"


def notes_of(place: Place, lengths: Any) -> list[str]:
    """What is to be said of a dataset that was gone through to its end."""
    notes = [f"{number:,} rows: {remark}" for remark, number in place.remarks.items()]
    if place.num_cut:
        notes.append(
            f"{place.num_cut:,} rows are longer than `{lengths.cut_by}` and were cut: {place.num_tokens_cut:,} "
            f"{lengths.unit} were not read"
        )
    notes += [f"left out: {number:,} bad rows ({shortened(why, 300)})" for why, number in place.bad_rows.items()]
    return notes
