"""What is seen of a run: metrics.jsonl to the contract, the display, the trackers; counts done by hand."""

import io
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from accelerate import Accelerator
from dry_runs import dry_run
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from thread_ranks import run_ranks

from hf_accum.accumulation.example import Example
from hf_accum.accumulation.execution import WindowExecution
from hf_accum.accumulation.window import Window
from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.stream import StreamCounts, WindowStream
from hf_accum.device.memory import peak_memory_bytes
from hf_accum.distributed.ranks import OneRank, Ranks
from hf_accum.errors import NotFinite, Stopped
from hf_accum.run import log as log_module
from hf_accum.run.log import RunLog

CONTRACT = [
    *("step", "epoch", "loss", "grad_norm", "learning_rate", "num_examples", "num_items", "num_tokens"),
    *("num_padded_tokens", "num_micro_batches", "step_seconds", "peak_memory_bytes", "num_oom_replays"),
    *("window_digest", "data_wait_share"),
]
LENGTHS = [[9, 4, 4], [7, 2]]  # of each rank's examples in a window


class Clock:
    """A clock that only a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(log_module, "time", SimpleNamespace(perf_counter=lambda: self.now))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def make_window(step: int, lengths: Sequence[Sequence[int]], rank: int = 0, epoch: int = 0) -> WindowExecution:
    """Each example weighs 0.5."""
    mine = tuple(Example(str(i), length, 0.5, {}) for i, length in enumerate(lengths[rank]))
    everyone = [length for some in lengths for length in some]
    window = Window(
        step=step,
        epoch=epoch,
        seed=0,
        examples=mine,
        dummy=Example("stand-in", 3, 1.0, {}),
        rank=rank,
        num_examples=len(everyone),
        num_items=0.5 * len(everyone),
        num_tokens=sum(everyone),
        digest=f"digest of {step}",
    )
    return WindowExecution(window)


def run_window(
    window: WindowExecution, micro_batch_size: int = 2, loss_of_an_example: float = 3.0
) -> WindowExecution:
    for micro_batch in dry_run(window, micro_batch_size):
        window.note(torch.tensor(loss_of_an_example * len(micro_batch.examples)))
    return window


def make_log(
    accelerator: Accelerator,
    folder: Path,
    *,
    ranks: Ranks | None = None,
    num_steps: int = 4,
    log_every: int = 2,
    console: Console | None = None,
) -> RunLog:
    return RunLog(
        accelerator,
        ranks or OneRank(),
        folder,
        num_steps=num_steps,
        log_every=log_every,
        console=console or Console(file=io.StringIO(), soft_wrap=True),
    )


def said(log: RunLog) -> str:
    assert isinstance(log.console.file, io.StringIO)
    return log.console.file.getvalue()


def lines_of(folder: Path) -> list[dict[str, Any]]:
    file = folder / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


# metrics.jsonl


def test_counts_are_over_all_ranks_and_times_of_the_slowest(
    accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Micro-batches of 2: of [9, 4, 4] they are [9, 4], [4], of [7, 2] one, and rank 2 computes only a stand-in."""
    lengths = [*LENGTHS, []]
    monkeypatch.setattr(log_module, "peak_memory_bytes", lambda device: 1000)

    def work(ranks: Ranks) -> str:
        log = make_log(accelerator, tmp_path, ranks=ranks, num_steps=1)
        with log:
            window = run_window(make_window(1, lengths, ranks.index), loss_of_an_example=1.0 + ranks.index)
            window.seconds_waited = 1.0 + ranks.index
            log._step_started = log_module.time.perf_counter() - 10 * (1 + ranks.index % 2)
            log.step(window, torch.tensor(0.25), 1e-3)
        return said(log)

    outputs = run_ranks(3, work)
    (line,) = lines_of(tmp_path)
    assert list(line) == CONTRACT
    seconds = line.pop("step_seconds")
    assert 20 <= seconds < 25  # rank 1's
    assert line == {
        "step": 1,
        "epoch": 0,
        "loss": pytest.approx((3 * 1.0 + 2 * 2.0) / 2.5),
        "grad_norm": 0.25,
        "learning_rate": 1e-3,
        "num_examples": 5,
        "num_items": 2.5,
        "num_tokens": 26,
        "num_padded_tokens": 2 * 9 + 4 + 2 * 7,
        "num_micro_batches": 3,
        "peak_memory_bytes": 1000,
        "num_oom_replays": 0,
        "window_digest": "digest of 1",
        "data_wait_share": pytest.approx(3 / seconds),  # that of rank 2
    }
    assert outputs[1:] == ["", ""]
    assert "step 1/1" in outputs[0]
    assert f"padding {1 - 26 / 36:.1%}" in outputs[0]


def test_steps_are_written_every_few_and_at_the_end(accelerator: Accelerator, tmp_path: Path, clock: Clock) -> None:
    log = make_log(accelerator, tmp_path, num_steps=5, log_every=2)
    written = []
    with log:
        for step in range(1, 6):
            clock.now += step
            log.step(run_window(make_window(step, [[5, 5]], epoch=step // 4)), 1.0, step / 10)
            written.append(len(lines_of(tmp_path)))
    assert written == [0, 2, 2, 4, 5]
    lines = lines_of(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert [line["epoch"] for line in lines] == [0, 0, 0, 1, 1]
    assert [line["learning_rate"] for line in lines] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert [line["step_seconds"] for line in lines] == [1, 2, 3, 4, 5]
    assert [line["window_digest"] for line in lines] == [f"digest of {step}" for step in range(1, 6)]
    assert all(list(line) == CONTRACT for line in lines)


def test_time_that_the_device_still_takes_is_shared_by_the_steps_before(
    accelerator: Accelerator, tmp_path: Path, clock: Clock
) -> None:
    class Slow:
        """A loss that the device has not computed yet."""

        def __float__(self) -> float:
            clock.now += 2
            return 1.0

    log = make_log(accelerator, tmp_path, num_steps=4, log_every=4)
    with log:
        for step in range(1, 5):
            clock.now += 1
            window = run_window(make_window(step, [[5]]))
            window.loss_sum = Slow  # type: ignore[method-assign]
            log.step(window, 1.0, 0.1)
    assert [line["step_seconds"] for line in lines_of(tmp_path)] == [3, 3, 3, 3]


def test_evaluating_is_no_part_of_a_step_s_time(accelerator: Accelerator, tmp_path: Path, clock: Clock) -> None:
    log = make_log(accelerator, tmp_path, num_steps=9, log_every=9)
    with log:
        log.start(RecipeConfig(), "about to run")
        for step in (1, 2):
            clock.now += 3
            log.step(run_window(make_window(step, [[5]])), 1.0, 0.1)
            log.flush()
            clock.now += 60  # the evaluation itself
            log.evaluation(step, {"loss": 1.0})
    assert [line["step_seconds"] for line in lines_of(tmp_path)] == [3, 3]


def test_losses_stay_on_the_device_until_they_are_shown(accelerator: Accelerator, tmp_path: Path) -> None:
    """A step waits for no number: it is read from the tensor only when lines are due."""
    log = make_log(accelerator, tmp_path, num_steps=9, log_every=2)
    norm = torch.tensor(1.0)
    with log:
        log.step(run_window(make_window(1, [[5]])), norm, 0.1)
        norm.fill_(7.0)
        log.step(run_window(make_window(2, [[5]])), torch.tensor(2.0), 0.1)
    assert [line["grad_norm"] for line in lines_of(tmp_path)] == [7.0, 2.0]


@pytest.mark.parametrize(
    ("loss", "grad_norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.inf), (-math.inf, math.nan), (1.0, None)]
)
def test_what_is_not_finite_is_null_and_said(
    accelerator: Accelerator, tmp_path: Path, loss: float, grad_norm: float | None
) -> None:
    log = make_log(accelerator, tmp_path, num_steps=2, log_every=2)
    with log:
        log.step(run_window(make_window(1, [[5]]), loss_of_an_example=0.5 * loss), grad_norm, 0.1)
        log.step(run_window(make_window(2, [[5]])), 1.0, 0.1)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    first, second = lines_of(tmp_path)
    assert first["loss"] == (loss if math.isfinite(loss) else None)
    assert first["grad_norm"] == (grad_norm if grad_norm is not None and math.isfinite(grad_norm) else None)
    assert (second["loss"], second["grad_norm"]) == (6.0, 1.0)
    shown = math.nan if grad_norm is None else float(grad_norm)
    assert f"step 1: loss {loss}, gradient norm {shown}: not finite\n" in said(log)
    assert "step 2: loss" not in said(log)


# What is shown


def test_plain_lines_where_there_is_no_terminal(accelerator: Accelerator, tmp_path: Path, clock: Clock) -> None:
    log = make_log(accelerator, tmp_path, num_steps=6, log_every=2)
    with log:
        for step in (1, 2, 3, 4):
            clock.now += 50
            log.step(run_window(make_window(step, [[40, 10]])), 0.123456, 2.5e-4)
    lines = said(log).splitlines()
    assert len(lines) == 2
    memory = [line["peak_memory_bytes"] / 2**30 for line in lines_of(tmp_path)]
    for line, step, left, peak in ((lines[0], 2, "0:03:20", memory[1]), (lines[1], 4, "0:01:40", memory[3])):
        assert line == (
            f"step {step}/6  {left} left  loss 6  grad norm 0.1235  lr 2.50e-04  1 tokens/s  padding 37.5%  "
            f"waiting for data 0.0%  memory {peak:.2f} GiB"
        )


def test_a_live_display_on_a_terminal(accelerator: Accelerator, tmp_path: Path) -> None:
    console = Console(force_terminal=True, file=io.StringIO(), width=160, color_system=None)
    log = make_log(accelerator, tmp_path, console=console, num_steps=4, log_every=2)
    with log:
        assert "\x1b[?25l" in said(log)  # the cursor is hidden while it is drawn anew
        log.say("a line above it")
        for step in (1, 2, 3):
            log.step(run_window(make_window(step, [[40, 10]])), 0.5, 1e-3)
    shown = said(log)
    assert shown.rstrip().endswith("\x1b[?25h")
    assert "a line above it\n" in shown
    last = shown[shown.rindex("3/4") - 40 :]
    for figure in ("loss 6", "grad norm 0.5", "lr 1.00e-03", "tokens/s", "padding 37.5%", "GiB", "left"):
        assert figure in last
    assert "step 2/4" not in shown  # no plain lines besides
    assert len(lines_of(tmp_path)) == 2


def test_the_display_is_put_away_after_an_error(accelerator: Accelerator, tmp_path: Path) -> None:
    console = Console(force_terminal=True, file=io.StringIO(), width=160)
    log = make_log(accelerator, tmp_path, console=console)
    with pytest.raises(ValueError, match="a bad row"), log:
        raise ValueError("a bad row")
    assert said(log).rstrip().endswith("\x1b[?25h")


def test_other_ranks_say_nothing(accelerator: Accelerator, tmp_path: Path) -> None:
    def work(ranks: Ranks) -> str:
        console = Console(force_terminal=True, file=io.StringIO(), width=160)
        log = make_log(accelerator, tmp_path, ranks=ranks, console=console, num_steps=1)
        with log:
            log.say("hello")
            log.step(run_window(make_window(1, LENGTHS, ranks.index)), 1.0, 0.1)
            log.evaluation(1, {"loss": 1.0})
        return said(log)

    first, second = run_ranks(2, work)
    assert "hello" in first
    assert "evaluation after step 1: loss 1" in first
    assert second == ""


def test_text_of_the_user_s_is_shown_as_it_is(accelerator: Accelerator, tmp_path: Path) -> None:
    log = make_log(accelerator, tmp_path)
    log.say("[red]patient[/red] 12.5 :smile: /a/very/long/path" * 5)
    assert said(log) == "[red]patient[/red] 12.5 :smile: /a/very/long/path" * 5 + "\n"


# Trackers


@pytest.fixture
def tensorboard_accelerator(accelerator: Accelerator, tmp_path: Path) -> Accelerator:
    from accelerate.utils import ProjectConfiguration

    return Accelerator(
        cpu=True, log_with="tensorboard", project_config=ProjectConfiguration(logging_dir=str(tmp_path / "logs"))
    )


def test_trackers_get_every_step_and_evaluation(tensorboard_accelerator: Accelerator, tmp_path: Path) -> None:
    log = make_log(tensorboard_accelerator, tmp_path, num_steps=3, log_every=2)
    with log:
        log.start(RecipeConfig(trackers=["tensorboard"], dropout=None), "about to run")
        for step in (1, 2, 3):
            log.step(run_window(make_window(step, [[40, 10]])), step / 2, 0.1)
        log.evaluation(3, {"loss": 0.5, "accuracy": 0.75, "per_class": {"a": {"f1": 1.0}}, "auroc": None})
    tensorboard_accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "logs" / "hf-accum")).Reload()

    def curve(name: str) -> list[tuple[int, float]]:
        return [(event.step, event.value) for event in events.Scalars(name)]

    assert curve("train/grad_norm") == [(1, 0.5), (2, 1.0), (3, 1.5)]
    assert curve("train/loss") == [(1, 6.0), (2, 6.0), (3, 6.0)]
    assert curve("eval/accuracy") == [(3, 0.75)]
    assert curve("eval/loss") == [(3, 0.5)]
    numbers = [name for name in CONTRACT if name != "window_digest"]
    assert {f"train/{name}" for name in numbers} <= set(events.Tags()["scalars"])
    assert "about to run\n" in said(log)


@pytest.mark.parametrize(
    ("step", "why", "expected"),
    [
        (3, Stopped("stopped by SIGTERM"), "stopped by SIGTERM after step 3: saved in {}; the same command goes on"),
        (0, Stopped("stopped by SIGTERM"), "stopped by SIGTERM after step 0: there is nothing to save\n"),
        (3, NotFinite("step 4: ..."), "ended by an error after step 3: saved in {}; the same command goes on"),
    ],
)
def test_an_early_end_is_said_and_ends_the_trackers(
    tensorboard_accelerator: Accelerator, tmp_path: Path, step: int, why: Exception, expected: str
) -> None:
    log = make_log(tensorboard_accelerator, tmp_path)
    log.start(RecipeConfig(trackers=["tensorboard"]), "")
    (tracker,) = tensorboard_accelerator.trackers
    log.end_early(step, why)
    assert expected.format(tmp_path / "checkpoints") in said(log)
    assert tracker.tracker.all_writers is None  # closed
    assert tensorboard_accelerator.trackers == []


# The end


def finished(
    accelerator: Accelerator, folder: Path, figures: Mapping[str, Any], counts: StreamCounts | None = None
) -> str:
    stream: Any = SimpleNamespace(counts=counts or StreamCounts())
    stream.bad_rows = lambda: stream.counts.bad_rows
    log = make_log(accelerator, folder, num_steps=9, log_every=9, console=Console(file=io.StringIO(), width=120))
    with log:
        log.step(run_window(make_window(1, [[5]])), 1.0, 0.1)
        real_stream: WindowStream[Any] = stream
        log.finish(1, figures, real_stream, folder / "adapter")
    assert len(lines_of(folder)) == 1  # what was pending is not lost
    return said(log)


def test_the_figures_are_written_and_the_result_named(accelerator: Accelerator, tmp_path: Path) -> None:
    per_class = {
        "a": {"precision": 0.25, "recall": 1.0, "f1": 0.4, "support": 1234.0, "auroc": None},
        "[/b]": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0.0, "auroc": 0.9},
    }
    figures = {"num_examples": 5, "loss": 0.5, "macro_f1": 0.2, "per_class": per_class}
    shown = finished(accelerator, tmp_path, figures)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == {"step": 1, **figures}
    *_, saved, next_one = shown.splitlines()
    assert saved.startswith("saved: ")
    assert next_one.startswith("next: hf-accum report ")
    rows = {row[0]: row[1:] for row in (line.replace("│", " ").split() for line in shown.splitlines()) if row}
    assert rows["a"] == ["0.250", "1.000", "0.400", "1234", "-"]
    assert rows["[/b]"] == ["0.000", "0.000", "0.000", "0", "0.900"]
    assert "left out" not in shown
    assert "truncated" not in shown


def test_figures_that_are_not_finite_are_null(accelerator: Accelerator, tmp_path: Path) -> None:
    finished(accelerator, tmp_path, {"loss": math.nan, "mse": math.inf, "per_class": {"a": {"f1": math.nan}}})
    expected = {"step": 1, "loss": None, "mse": None, "per_class": {"a": {"f1": None}}}
    assert json.loads((tmp_path / "evaluation.json").read_text()) == expected


def test_what_was_left_out_or_cut_is_said(accelerator: Accelerator, tmp_path: Path) -> None:
    counts = StreamCounts(
        bad_rows=Counter({"field 'text': empty text": 1200, "not JSON": 3}),
        num_examples=5000,
        num_truncated_examples=17,
        num_truncated_tokens=4321,
        num_weightless_windows=2,
    )
    shown = finished(accelerator, tmp_path, {"loss": 0.5}, counts).splitlines()
    for line in (
        "truncated: 17 of 5,000 examples, by 4,321 tokens in all (--max_length)",
        "left out while training: 1,200 bad rows over all passes (field 'text': empty text)",
        "left out while training: 3 bad rows over all passes (not JSON)",
        "skipped: 2 windows without any item of weight",
    ):
        assert line in shown


def test_peak_memory_is_that_of_the_process() -> None:
    """At least what is resident now, and not a thousand times off in its unit."""
    block = torch.ones(2**24)  # 64 MiB
    resident = psutil.Process(os.getpid()).memory_info().rss
    peak = peak_memory_bytes(torch.device("cpu"))
    assert block.sum() == 2**24
    assert resident * 0.95 <= peak <= resident * 50
