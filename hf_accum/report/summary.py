"""Runs in words and numbers: what each was, how it went, what it reached, and what they differ in."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hf_accum.byte_sizes import format_bytes
from hf_accum.durations import clock
from hf_accum.errors import shortened
from hf_accum.report.run_files import RunFiles

NOT_KNOWN = "not known"
_OF_THE_PLACE = {"output_dir"}
"""Settings that differ between any two runs."""
_LONGEST = 120  # characters of a setting where it is beside others


def status_of(run: RunFiles) -> str:
    """How far the run is."""
    done = int(run.steps.step[-1]) if len(run.steps) else 0
    of = f" of {run.num_steps:,}" if run.num_steps is not None else ""
    if run.is_through:
        return f"through, {done:,} steps"
    return f"not through: {done:,}{of} steps so far" if done else "not through: no step yet"


def was(run: RunFiles) -> dict[str, str]:
    """What the run was: data, model, window, versions."""
    setting, fact = run.config.get, run.facts.get
    versions = fact("versions")
    trained, parameters = fact("num_trained_parameters"), fact("num_parameters")
    rows = {
        "recipe": fact("recipe"),
        "model": fact("model") or setting("model") or _own(fact("own_model")),
        "parameters": f"{_shown(parameters)}, of which {_shown(trained)} are trained" if parameters else None,
        "data": fact("dataset") or setting("dataset") or _own(None),
        "examples to train on": fact("num_train"),
        "examples held out": fact("num_held_out"),
        "examples for calibration": fact("num_calibration"),
        "digest of the data": fact("data_digest"),
        "window (examples per step)": setting("effective_batch_size"),
        "micro-batch": setting("micro_batch_size"),
        f"{run.unit} of an example at once, at most": run.tuning.get("max_length") or setting("max_length"),
        "optimizer": setting("optimizer"),
        "learning rate, the greatest": _largest(run.steps.of("learning_rate")) or setting("learning_rate"),
        "LoRA rank (0: all weights)": setting("lora.rank"),
        "quantization": setting("quantization"),
        "seed": setting("seed"),
        "ranks": fact("num_ranks") or (len(run.tuning["ranks"]) if run.tuning.get("ranks") else None),
        "device": fact("device") or run.tuning.get("device"),
        "precision": fact("precision"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items())
        if isinstance(versions, Mapping)
        else None,
    }
    return {name: NOT_KNOWN if value in (None, "") else _shown(value) for name, value in rows.items()}


def _own(name: str | None) -> str:
    """What a recipe brings; a run of an earlier version does not name it."""
    return f"{name}, the recipe's own" if name else "the recipe's own"


def went(run: RunFiles) -> dict[str, str]:
    """How it went: progress, loss, speed, padding, where the time went, memory."""
    steps = run.steps
    seconds, tokens, padded = (steps.total(name) for name in ("step_seconds", "num_tokens", "num_padded_tokens"))
    waited = float(np.nansum(steps.of("data_wait_share") * steps.of("step_seconds")))
    peak, budget = _largest(steps.of("peak_memory_bytes")), run.tuning.get("budget_bytes")
    has_waited = bool(np.isfinite(steps.of("data_wait_share")).any())
    last = max(1, len(steps) // 20)
    loss = steps.of("loss")[-last:]
    loss = loss[np.isfinite(loss)]
    return {
        "steps": f"{len(steps):,}" + (f" of {run.num_steps:,}" if run.num_steps is not None else ""),
        "loss at the end": _or(
            len(loss) > 0, lambda: f"{loss.mean():.4g}" + (f" (mean of the last {last:,} steps)" if last > 1 else "")
        ),
        "time of all steps": _or(seconds > 0, lambda: clock(seconds)),
        "seconds per step, median": _or(seconds > 0, lambda: f"{np.nanmedian(steps.of('step_seconds')):.3g}"),
        f"{run.unit} per second": _or(seconds > 0, lambda: f"{tokens / seconds:,.0f}"),
        "padding, of all positions computed": _or(padded > 0, lambda: f"{1 - tokens / padded:.1%}"),
        "time waiting for data": _or(seconds > 0 and has_waited, lambda: f"{waited / seconds:.1%}"),
        "highest peak memory": _or(peak > 0, lambda: format_bytes(peak)),
        "memory budget": _or(bool(budget), lambda: format_bytes(float(budget or 0)), "none was measured against"),
        "examples per micro-batch, mean": _or(
            steps.total("num_micro_batches") > 0,
            lambda: f"{steps.total('num_examples') / steps.total('num_micro_batches'):.3g}",
        ),
    }


def figures_of(run: RunFiles) -> dict[str, str]:
    """The single figures of evaluation.json, with their intervals."""
    intervals = run.evaluation.get("confidence_intervals")
    intervals = intervals if isinstance(intervals, Mapping) else {}
    return {
        name.replace("_", " "): _shown(value) + _interval(intervals.get(name))
        for name, value in run.evaluation.items()
        if (value is None or isinstance(value, int | float)) and name != "step"
    }


def intervals_of(run: RunFiles) -> str | None:
    """What the intervals beside the figures are; None: there are none."""
    how = run.evaluation.get("bootstrap")
    if not run.evaluation.get("confidence_intervals") or not isinstance(how, Mapping):
        return None
    level, groups = how.get("level"), how.get("num_groups")
    if not isinstance(level, int | float) or not isinstance(groups, int | float):
        return None
    return f"In brackets: the interval of {level:.0%}, by a bootstrap over {_shown(groups)} groups."


def side_by_side(columns: Sequence[Mapping[str, str]]) -> list[tuple[str, list[str]]]:
    """A row for each name that any has, in order of appearance; empty where one does not have it."""
    names = dict.fromkeys(name for column in columns for name in column)
    return [(name, [column.get(name, "") for column in columns]) for name in names]


def known(rows: Sequence[tuple[str, list[str]]]) -> tuple[list[tuple[str, list[str]]], list[str]]:
    """The rows of which some run knows something, and the names of the others."""
    is_known = [any(cell not in (NOT_KNOWN, "") for cell in cells) for _, cells in rows]
    named = list(zip(rows, is_known, strict=True))
    return [row for row, some in named if some], [row[0] for row, some in named if not some]


def differing(runs: Sequence[RunFiles]) -> list[tuple[str, list[str]]]:
    """The settings in which runs differ, beside their folders."""
    names = dict.fromkeys(name for run in runs for name in run.config)
    rows: list[tuple[str, list[str]]] = []
    for name in names:
        values = [repr(run.config.get(name)) if name in run.config else "-" for run in runs]
        if name not in _OF_THE_PLACE and len(set(values)) > 1:
            rows.append((name, [shortened(_shown(run.config.get(name, "-")), _LONGEST) for run in runs]))
    return rows


def settings_of(run: RunFiles) -> dict[str, str]:
    """All settings of a run."""
    return {name: _shown(value) for name, value in run.config.items()}


def cell(name: str, value: Any) -> str:
    """A cell of the table by class: counts whole, shares with three places."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "-"
    is_count = name in ("support", "predicted") or name.startswith("num_")
    return f"{value:,.0f}" if is_count else f"{value:.3f}"


def _or(known: bool, shown: Callable[[], str], otherwise: str = NOT_KNOWN) -> str:
    return shown() if known else otherwise


def _largest(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.max()) if len(known) else 0.0


def _interval(interval: Any) -> str:
    if (
        not isinstance(interval, list)
        or len(interval) != 2
        or not all(isinstance(end, int | float) for end in interval)
    ):
        return ""
    return f" ({interval[0]:.4g} to {interval[1]:.4g})"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    return str(value)
