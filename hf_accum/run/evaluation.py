"""The evaluations of a run: on which examples, calibrated on which, and how long they take."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from hf_accum.accumulation.example import Example, Origin
from hf_accum.accumulation.splitting import Cutter
from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.eval_sample import sample_rows
from hf_accum.data.mixture import Mixture
from hf_accum.data.source import Row, Source
from hf_accum.data.split import SplitData
from hf_accum.data.stream import WindowStream
from hf_accum.distributed.collectives import on_rank_0
from hf_accum.durations import clock
from hf_accum.errors import UserError
from hf_accum.evaluation.judge import Judged
from hf_accum.files import write_json
from hf_accum.run.signals import StopRequest
from hf_accum.run.start import StartedRun
from hf_accum.tasks.judging import Classifies, judge_each
from hf_accum.tasks.task import Calibrates, Shows, Task

CALIBRATION = "calibration.json"
"""Beside the weights: the temperature and the thresholds that predictions are made with."""
_AT_ONCE = 256  # examples of each rank: the window of an evaluation
_LONG_SECONDS = 30.0
_SHARE_OF_A_STEP = 0.5  # a forward: with adapters a backward takes as long again, and else twice as long


class Evaluation:
    """Evaluates a task on the held-out part, or on the sample of it that `max_eval_examples` asks for.

    Where a part is kept to calibrate on, the task is calibrated on it before each evaluation, so that the figures of
    all evaluations are of one kind. Making one is a collective.

    Raises:
        UserError: if there is no held-out example, or none to calibrate on.
    """

    def __init__(
        self,
        run: StartedRun,
        config: RecipeConfig,
        data: SplitData,
        task: Task[Any],
        draw: Callable[[Example, int | None], Example] | None,
    ) -> None:
        self._run, self._config, self._data, self._task, self._draw = run, config, data, task, draw
        self._num_examples = data.num_held_out
        self._seconds: float | None = None
        self._stop: StopRequest | None = None
        source = data.eval_source
        if config.max_eval_examples is not None:
            source, number = sample_rows(
                source, self._prepared(self._is_held_out), config.max_eval_examples, run.ranks, config.on_bad_row
            )
            self._num_examples = min(number, config.max_eval_examples)
            if number > config.max_eval_examples:
                run.notes.append(
                    f"evaluations are on {self._num_examples:,} of {number:,} held-out rows, always the same ones "
                    "(`max_eval_examples`)"
                )
        self._source = source
        self._held_out = self._stream(source, self._is_held_out)
        self._held_out.first_example()  # there has to be one
        self._calibration = None
        if data.calibration_fraction:
            self._calibration = self._stream(data.source, self._is_for_calibration)
            self._calibration.first_example()
            if self._num_examples is not None:
                self._num_examples += data.num_calibration or 0

    def expected(self, seconds_per_example: float | None) -> str | None:
        """What to say of how long an evaluation takes, by the last one or the speed of training; None: not long."""
        seconds, by = self._seconds, "as the last one"
        if seconds is None and seconds_per_example is not None and self._num_examples is not None:
            seconds, by = seconds_per_example * self._num_examples * _SHARE_OF_A_STEP, "by the speed of training"
        if seconds is None or seconds < _LONG_SECONDS:
            return None
        sample = "" if self._config.max_eval_examples else "; `max_eval_examples` takes a sample"
        number = "" if self._num_examples is None else f" of {self._num_examples:,} examples"
        return f"evaluation{number}: about {clock(seconds)}, {by}{sample}"

    def figures(
        self, model: nn.Module, cutter: Cutter, result: Path | None = None, stop: StopRequest | None = None
    ) -> Mapping[str, Any]:
        """The figures of a model. A collective.

        With `result`, the folder of the weights, at the end of a run, also all that a task tells of each example,
        and in that folder what was fitted to calibrate by. With `stop` it is left where any rank is asked to.

        Raises:
            LeftEarly: if it was left, on all ranks.
        """
        self._stop = stop
        try:
            with nullcontext() if stop is None else stop.during_evaluation():
                return self._figures(model, cutter, result)
        finally:
            self._stop = None

    def _figures(self, model: nn.Module, cutter: Cutter, result: Path | None) -> Mapping[str, Any]:
        started = time.perf_counter()
        how: dict[str, Any] = {"ranks": self._run.ranks, "cutter": cutter}
        if self._calibration is not None:
            assert isinstance(self._task, Calibrates)
            self._task = self._task.calibrate(model, self._calibration, **how)
        if result is not None and isinstance(self._task, Shows):
            how["folder"] = self._run.folder
        figures = self._task.evaluate(model, self._held_out, **how)
        if result is not None and self._data.mixture is not None:
            figures = {**figures, "datasets": self._of_each(self._data.mixture, model, cutter)}
        self._seconds = time.perf_counter() - started
        if self._calibration is None or result is None:
            return figures
        fitted = {name: value for name, value in figures["calibration"].items() if name != "reliability"}
        on_rank_0(self._run.ranks, lambda: write_json(result / CALIBRATION, fitted))
        return {**figures, "notes": [*figures["notes"], f"to predict with: {result.name}/{CALIBRATION}"]}

    def first_examples(self, number: int) -> list[Example]:
        """The first held-out examples, in the order of the files; fewer where there are no more."""
        examples, draw = self._held_out.first_examples(number), self._draw
        return examples if draw is None else [draw(example, None) for example in examples]

    def judged(self, model: nn.Module, cutter: Cutter) -> Judged:
        """Each held-out example with its loss, of a task that judges each by itself. A collective.

        Raises:
            UserError: if the task does not.
        """
        if not isinstance(self._task, Classifies):
            raise UserError("only classifications and regressions are judged example by example so far")
        return judge_each(self._task, model, self._held_out, self._run.ranks, cutter, is_last=True)

    def _of_each(self, mixture: Mixture, model: nn.Module, cutter: Cutter) -> dict[str, Mapping[str, Any]]:
        """The figures of the held-out part of each dataset, by its name. A collective."""
        found: dict[str, Mapping[str, Any]] = {}
        for name, shards in zip(mixture.names, mixture.eval_shards, strict=True):
            stream = self._stream(self._source, self._is_held_out, shards)
            found[name] = {"num_examples": 0}
            if stream.has_examples():
                found[name] = self._task.evaluate(model, stream, ranks=self._run.ranks, cutter=cutter)
        return found

    def _is_to_be_left(self) -> bool:
        return self._stop is not None and self._stop.is_asked()

    def _is_held_out(self, row: Row) -> bool:
        return self._data.is_held_out(row, of_eval_source=True)

    def _is_for_calibration(self, row: Row) -> bool:
        is_eval = self._data.is_held_out(row, of_eval_source=False)
        return not is_eval and self._data.is_for_calibration(row, of_eval_source=False)

    def _prepared(self, is_wanted: Callable[[Row], bool]) -> Callable[[Row], Any]:
        task, data = self._task, self._data
        if not isinstance(task, Shows):
            return lambda row: task.prepare(row) if is_wanted(row) else None

        def prepare(row: Row) -> Origin | None:
            prepared = task.prepare(row) if is_wanted(row) else None
            return None if prepared is None else Origin(prepared, data.group_of(row))

        return prepare

    def _encode(self, rows: Sequence[tuple[str, Any]]) -> list[Example]:
        if not isinstance(self._task, Shows):
            return self._task.encode(rows)
        examples = self._task.encode([(name, origin.row) for name, origin in rows])
        return [replace(example, origin=origin) for example, (_, origin) in zip(examples, rows, strict=True)]

    def _stream(
        self, source: Source, is_wanted: Callable[[Row], bool], shards: range | None = None
    ) -> WindowStream[Any]:
        config, draw, ranks = self._config, self._draw, self._run.ranks
        return WindowStream(
            source,
            self._prepared(is_wanted),
            self._encode,
            ranks=ranks,
            effective_batch_size=_AT_ONCE * ranks.count,
            seed=config.seed,
            split=config.stream_split,
            shuffle_block_size=1,
            on_bad_row=config.on_bad_row,
            skip_weightless=False,
            draw=None if draw is None else lambda example, epoch: draw(example, None),
            stopping=self._is_to_be_left,
            shards=shards,
        )
