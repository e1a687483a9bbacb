"""Seeing a run: a live display, `metrics.jsonl`, and accelerate's trackers."""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from hf_accum.accumulation.execution import WindowExecution
from hf_accum.config.flags import as_flags, flag_names
from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.stream_state import StreamCounts
from hf_accum.device.memory import peak_memory_bytes
from hf_accum.distributed.collectives import on_all_ranks
from hf_accum.distributed.ranks import Ranks, float_bits
from hf_accum.durations import clock
from hf_accum.errors import Stopped
from hf_accum.files import JsonLines, json_safe, write_json
from hf_accum.run.shown_figures import in_a_line, lines_of, short, show_classes, single
from hf_accum.run.step_metrics import PendingStep, StepMetrics, merged
from hf_accum.run.trackers import Trackers

if TYPE_CHECKING:
    from accelerate import Accelerator


class Counted(Protocol):
    """What a stream of windows has used and left out."""

    @property
    def counts(self) -> StreamCounts:
        """So far."""
        ...

    def bad_rows(self) -> Counter[str]:
        """Over all ranks, by their reason. A collective."""
        ...


class RunLog:
    """Collects steps without waiting for the device; every `log_every` steps it gathers and shows them.

    All ranks call the same methods in the same order; rank 0 writes and shows. Use it as a context manager.
    """

    def __init__(
        self,
        accelerator: "Accelerator",
        ranks: Ranks,
        folder: Path,
        num_steps: int,
        log_every: int,
        first_step: int = 0,
        *,
        unit: str = "tokens",
        cut_by: str = "max_length",
        console: Console | None = None,
    ) -> None:
        self.accelerator = accelerator
        self.ranks = ranks
        self.folder = folder
        self.num_steps = num_steps
        self.first_step = first_step
        self.log_every = log_every
        self.unit = unit
        self.cut_by = cut_by
        self.console = console or Console(soft_wrap=True)
        self.trackers = Trackers(accelerator, ranks, self.say)
        self._lines = JsonLines(folder / "metrics.jsonl", self.say)
        self._pending: list[PendingStep] = []
        self._started = self._step_started = time.perf_counter()
        self._last_step = 0
        self._num_oom_replays = 0
        self._trained = [0.0, 0]  # seconds, examples
        self._display: Progress | None = None

    def __enter__(self) -> "RunLog":
        """Start the display and the clock."""
        if self.ranks.index == 0 and self.console.is_terminal:
            self._display = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=20),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]} left  {task.fields[figures]}"),
                console=self.console,
            )
            self._task = self._display.add_task("", total=self.num_steps, left="?", figures="")
            self._display.start()
        self._started = self._step_started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the display, and write lines that the disk had no room for before."""
        if self._display is not None:
            self._display.stop()
        self._lines.close()

    def start(self, config: RecipeConfig, description: str) -> None:
        """Start the trackers with the run's configuration, and say what it will do. A collective.

        Raises:
            UserError: as `Trackers.start` does.
        """
        self.trackers.start(config)
        self.say(description)
        self._step_started = time.perf_counter()

    def step(
        self,
        execution: WindowExecution,
        grad_norm: Tensor | float | None,
        learning_rate: Tensor | float,
        allocator: tuple[int, int] | None = None,
    ) -> None:
        """Take note of an optimizer step that has been queued; `allocator` is what `reserved_and_retries` said."""
        now = time.perf_counter()
        self._pending.append(
            PendingStep(
                execution,
                execution.loss_sum(),
                math.nan if grad_norm is None else grad_norm,
                float(learning_rate),
                now - self._step_started,
                peak_memory_bytes(self.accelerator.device),
                allocator,
            )
        )
        self._step_started = now
        window = execution.window
        self._last_step = window.step
        if self._display is not None:
            self._display.update(self._task, completed=window.step, left=self._time_left(window.step))
        if window.step % self.log_every == 0 or window.step == self.num_steps:
            self.flush()

    def flush(self) -> None:
        """Gather what is pending, write it and show it. A collective, if there is something pending."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        loss_sums = [float(p.loss_sum) for p in pending]  # here the device has done all of these steps
        waited = (time.perf_counter() - self._step_started) / len(pending)
        self._trained[0] += sum(p.step_seconds + waited for p in pending)
        self._trained[1] += sum(p.execution.window.num_examples for p in pending)
        numbers: list[int] = []
        for p, loss_sum in zip(pending, loss_sums, strict=True):
            numbers += [
                float_bits(loss_sum),
                p.execution.num_padded_tokens,
                p.execution.num_micro_batches,
                float_bits(p.step_seconds + waited),
                p.peak_memory_bytes,
                p.execution.num_oom_replays,
                float_bits(p.execution.seconds_waited),
                *(p.allocator or (0, 0)),
            ]
        width = len(numbers) // len(pending)
        everyone = self.ranks.gather(numbers)
        if self.ranks.index == 0:
            lines = []
            for i, p in enumerate(pending):
                columns = list(zip(*(rank[i * width : (i + 1) * width] for rank in everyone), strict=True))
                lines.append(merged(p, columns))
                self._say_replays(lines[-1], p.execution)
            self._write(lines)
        # The time that writing takes is nobody's step.
        self._step_started = time.perf_counter()

    @property
    def seconds_per_example(self) -> float | None:
        """How long an example took to train on so far, over all ranks; None: there was none."""
        seconds, number = self._trained
        return seconds / number if number else None

    def _say_replays(self, line: StepMetrics, execution: WindowExecution) -> None:
        if line.num_oom_replays and not self._num_oom_replays:  # the others are counted
            what = execution.last_replay or "memory ran out on another rank: its window starts anew in smaller pieces"
            self.say(f"step {line.step}: {what}; the gradient is the same")
        self._num_oom_replays += line.num_oom_replays

    def evaluation(self, step: int, figures: Mapping[str, Any]) -> None:
        """Show an evaluation, and hand it to the trackers."""
        self.flush()
        self.say(f"evaluation after step {step}: {in_a_line(figures)}")
        for name, of_one in figures.get("datasets", {}).items():
            self.say(f"of {name}: {in_a_line(of_one)}")
        self.trackers.log({f"eval/{name}": value for name, value in single(figures).items()}, step)
        self._step_started = time.perf_counter()

    def say(self, text: str) -> None:
        """A line for the user, from rank 0, above the display; arguments in backticks as flags."""
        if self.ranks.index == 0:
            self.console.print(as_flags(text, flag_names()), highlight=False, markup=False, emoji=False)

    def finish(self, step: int, figures: Mapping[str, Any], stream: Counted, exported: Path) -> None:
        """Write evaluation.json; say how each class fares, what was left out of the data, where the result is."""
        self.flush()
        if self.ranks.index == 0:
            write_json(self.folder / "evaluation.json", json_safe({"step": step, **figures}))
            show_classes(self.console, figures)
        for line in lines_of(figures):
            self.say(line)
        counts = stream.counts
        if counts.num_truncated_examples:
            self.say(
                f"truncated: {counts.num_truncated_examples:,} of {counts.num_examples:,} examples, by "
                f"{counts.num_truncated_tokens:,} tokens in all (`{self.cut_by}`)"
            )
        if self._num_oom_replays > 1:
            self.say(f"replayed: {self._num_oom_replays:,} times a window started anew because memory ran out")
        for reason, number in stream.bad_rows().most_common():
            self.say(f"left out while training: {number:,} bad rows over all passes ({reason})")
        if counts.num_weightless_windows:
            self.say(f"skipped: {counts.num_weightless_windows:,} windows without any item of weight")
        self.say(f"saved: {exported}")
        self.say(f"next: hf-accum report {exported.parent}")

    def end_early(self, step: int, why: Exception, is_saved: bool = True) -> None:
        """Say that the run ends before its time, and end the trackers. A collective.

        All ranks come back from it together: torchrun ends the others as soon as one is through.
        """
        where = self.folder / "checkpoints"
        saved = f"saved in {where}; the same command goes on from there, with `resume auto`"
        if not is_saved:
            saved = f"it could not be saved; what was saved before is in {where}"
        what = why if isinstance(why, Stopped) else "ended by an error"
        self.say(f"{what} after step {step}: {saved if step else 'there is nothing to save'}")

        on_all_ranks(self.ranks, self.trackers.end)

    def _write(self, lines: Sequence[StepMetrics]) -> None:
        self._lines.add(line.as_json() for line in lines)
        for line in lines:
            values = {name: v for name, v in asdict(line).items() if not isinstance(v, str | None)}
            self.trackers.log({f"train/{name}": value for name, value in values.items()}, line.step)
        last = lines[-1]
        seconds = sum(line.step_seconds for line in lines)
        tokens = sum(line.num_tokens for line in lines)
        padded = sum(line.num_padded_tokens for line in lines)
        waited = sum(line.data_wait_share * line.step_seconds for line in lines) / seconds
        figures = (
            f"loss {short(last.loss)}  grad norm {short(last.grad_norm)}  lr {last.learning_rate:.2e}  "
            f"{tokens / seconds:,.0f} {self.unit}/s  padding {1 - tokens / padded:.1%}  "
            f"waiting for data {waited:.1%}  memory {last.peak_memory_bytes / 2**30:.2f} GiB"
        )
        if self._display is not None:
            self._display.update(self._task, figures=figures)
        else:
            self.say(f"step {last.step}/{self.num_steps}  {self._time_left(last.step)} left  {figures}")
        for line in lines:
            if not math.isfinite(line.loss) or not math.isfinite(line.grad_norm):
                self.say(f"step {line.step}: loss {line.loss}, gradient norm {line.grad_norm}: not finite")

    def _time_left(self, step: int) -> str:
        return clock((time.perf_counter() - self._started) / (step - self.first_step) * (self.num_steps - step))
