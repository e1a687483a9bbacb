"""The figures of runs: curves over steps with all runs in one, and memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_accum.accumulation.capacity import Capacity
from hf_accum.report.binning import Binned, binned
from hf_accum.report.events import replayed, skipped
from hf_accum.report.run_files import RunFiles
from hf_accum.report.style import INK, MUTED, SERIES, colour_of, dashes_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_SIZE = (4.6, 2.5)  # inches: readable at the width of a phone
_MOST_BANDS = 4
_GIB = 2**30


@dataclass(frozen=True)
class Drawn:
    """A figure, what it is called in file names, and what is to be said below it."""

    name: str
    title: str
    caption: str
    figure: "Figure"
    is_wide: bool = False
    """It is not to be made as small as a phone."""


def panel_of(size: tuple[float, float] = _SIZE) -> tuple["Figure", Any]:
    """An empty figure with one panel, which no window shows and nothing keeps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def training_figures(runs: Sequence[RunFiles]) -> list[Drawn]:
    """Loss, learning rate and gradient norm."""
    found = [
        _curves(runs, "loss", "Loss", "loss", lambda run: (run.steps.of("loss"), run.steps.of("num_items"))),
        _curves(runs, "learning-rate", "Learning rate", "learning rate", _column("learning_rate")),
        _curves(runs, "gradient-norm", "Gradient norm", "norm, before clipping", _column("grad_norm"), log=True),
    ]
    return [drawn for drawn in found if drawn]


def speed_figures(runs: Sequence[RunFiles]) -> list[Drawn]:
    """Tokens per second, padding, and where the time of a step went."""

    def padding(run: RunFiles) -> tuple[np.ndarray, np.ndarray]:
        tokens, padded = run.steps.of("num_tokens"), run.steps.of("num_padded_tokens")
        return 100 * (1 - _ratio(tokens, padded)), padded

    def speed(run: RunFiles) -> tuple[np.ndarray, np.ndarray]:
        seconds = run.steps.of("step_seconds")
        return _ratio(run.steps.of("num_tokens"), seconds), seconds

    unit = runs[0].unit
    time = _step_time(runs[0]) if len(runs) == 1 else None
    found = [
        _curves(runs, "speed", f"{unit.capitalize()} per second", f"{unit}/s", speed, from_zero=True),
        _curves(runs, "padding", "Padding", "% of positions computed", padding, from_zero=True),
        time or _curves(runs, "step-time", "Seconds per step", "seconds", _column("step_seconds"), from_zero=True),
    ]
    return [drawn for drawn in found if drawn]


def memory_figures(runs: Sequence[RunFiles]) -> list[Drawn]:
    """Peak memory against the budget by step, and the capacity by length with the micro-batches that were used."""
    found = [_peak_memory(runs), *(_capacity(run, index, several=len(runs) > 1) for index, run in enumerate(runs))]
    return [drawn for drawn in found if drawn]


def _column(name: str) -> Callable[[RunFiles], tuple[np.ndarray, None]]:
    return lambda run: (run.steps.of(name), None)


def _ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    return np.divide(over, under, out=np.full(len(over), np.nan), where=np.nan_to_num(under) > 0)


def _curves(
    runs: Sequence[RunFiles],
    name: str,
    title: str,
    axis: str,
    values_of: Callable[[RunFiles], tuple[np.ndarray, np.ndarray | None]],
    *,
    log: bool = False,
    from_zero: bool = False,
) -> Drawn | None:
    """A curve for each run that has the numbers; None: no run has."""
    curves: list[tuple[int, Binned]] = []
    for index, run in enumerate(runs):
        values, weights = values_of(run)
        if np.isfinite(values).any():
            curves.append((index, binned(run.steps.step, values, weights)))
    if not curves:
        return None
    figure, panel = panel_of()
    for index, curve in curves:
        _draw(panel, curve, index, runs[index].name, with_band=len(curves) <= _MOST_BANDS)
    if log and _spans_decades([curve for _, curve in curves]):
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panel.yaxis.set_minor_formatter("")
    elif from_zero:
        panel.set_ylim(bottom=0)
    panel.set(xlabel="step", ylabel=axis)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    marked = _marks(panel, runs[0]) if name == "loss" and len(runs) == 1 else ""
    _legend(panel)
    return Drawn(name, title, _binning(runs, curves) + marked, figure)


def _spans_decades(curves: Sequence[Binned]) -> bool:
    """Whether a logarithmic axis shows more of them: all is above 0, and the greatest is far above the least."""
    values = np.concatenate([end[np.isfinite(end)] for curve in curves for end in (curve.low, curve.high)])
    return bool(values.min() > 0 and values.max() > 20 * values.min())


def _draw(panel: Any, curve: Binned, index: int, label: str, *, with_band: bool) -> None:
    colour, is_single = colour_of(index), len(curve.steps) == 1
    style = {"color": colour, "linestyle": dashes_of(index), "marker": "o" if is_single else ""}
    panel.plot(curve.steps, curve.mean, label=in_legend(label), **style)
    if with_band and curve.steps_per_bin > 1:
        panel.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.25, linewidth=0)


def _marks(panel: Any, run: RunFiles) -> str:
    """Events on the axis of the steps; returns what is to be said of them."""
    said = []
    events = (("replays", replayed(run), SERIES[1], "|"), ("skips", skipped(run), SERIES[5], "x"))
    for name, steps, colour, marker in events:
        if len(steps):
            panel.plot(
                _thinned(run, steps),
                np.full(len(_thinned(run, steps)), 0.03),
                marker,
                color=colour,
                transform=panel.get_xaxis_transform(),
                label=name,
            )
            said.append(name)
    for number, step in enumerate(sorted(set(run.resumes))):
        label = {"label": "resumes"} if number == 0 else {}
        panel.axvline(step, color=MUTED, linestyle="--", linewidth=0.8, **label)
    said += ["resumes"] if run.resumes else []
    return f" Marked: {', '.join(said)}." if said else ""


def _thinned(run: RunFiles, steps: np.ndarray) -> np.ndarray:
    """Marks that would lie on each other are one."""
    span = max(1, (int(run.steps.step[-1]) if len(run.steps) else 1) // 500)
    return np.unique(steps // span * span)


def _legend(panel: Any, fewest: int = 2) -> None:
    handles, labels = panel.get_legend_handles_labels()
    if len(labels) >= fewest:
        panel.legend(handles, [_short(label) for label in labels], loc="best")


def in_legend(name: str) -> str:
    """A name as a label of a line: matplotlib hides those that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


def _short(name: str) -> str:
    return name if len(name) <= 30 else f"... {name[-26:]}"


def _binning(runs: Sequence[RunFiles], curves: Sequence[tuple[int, Binned]]) -> str:
    per_bin = sorted({curve.steps_per_bin for _, curve in curves})
    if per_bin == [1]:
        return "Every step is shown."
    band = ", the band from the least to the greatest step" if len(curves) <= _MOST_BANDS else ", without extremes"
    return f"The line is the mean of {' or '.join(map(str, per_bin))} steps{band}."


def _step_time(run: RunFiles) -> Drawn | None:
    """Where the seconds of a step went, as far as a run writes it down."""
    seconds, share = run.steps.of("step_seconds"), run.steps.of("data_wait_share")
    if not np.isfinite(seconds).any() or not np.isfinite(share).any():
        return None
    whole, waited = binned(run.steps.step, seconds), binned(run.steps.step, seconds * share)
    figure, panel = panel_of()
    step = "mid" if len(whole.steps) > 1 else None
    parts = (
        (0 * whole.mean, waited.mean, SERIES[1], "waiting for data"),
        (waited.mean, whole.mean, SERIES[0], "the rest"),
    )
    for low, high, colour, label in parts:
        panel.fill_between(whole.steps, low, high, step=step, color=colour, alpha=0.75, linewidth=0, label=label)
    panel.set(xlabel="step", ylabel="seconds per step")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_ylim(bottom=0)
    panel.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    mean = f"Each band is the mean of {whole.steps_per_bin} steps. " if whole.steps_per_bin > 1 else ""
    caption = f"{mean}The rest is forward, backward and the optimizer, which a run does not write down apart."
    return Drawn("step-time", "Where a step's time went", caption, figure)


def _peak_memory(runs: Sequence[RunFiles]) -> Drawn | None:
    figure, panel = panel_of()
    curves: list[tuple[int, Binned]] = []
    several = len(runs) > 1
    for index, run in enumerate(runs):
        peak = run.steps.of("peak_memory_bytes") / _GIB
        if not (np.nan_to_num(peak) > 0).any():
            continue
        curves.append((index, binned(run.steps.step, peak)))
        _draw(panel, curves[-1][1], index, run.name if several else "peak", with_band=True)
        reserved = run.steps.of("reserved_memory_bytes") / _GIB
        if not several and np.isfinite(reserved).any():
            _draw(panel, binned(run.steps.step, reserved), 2, "held by the allocator", with_band=True)
        if budget := run.tuning.get("budget_bytes"):
            colour = colour_of(index) if several else INK
            label = {} if several else {"label": "budget"}
            panel.axhline(float(budget) / _GIB, color=colour, linestyle=":", linewidth=1.2, **label)
    if not curves:
        return None
    panel.set(xlabel="step", ylabel="GiB, worst rank")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_ylim(bottom=0)
    _legend(panel)
    dotted = " Dotted: the budget." if any(run.tuning.get("budget_bytes") for run in runs) else ""
    return Drawn("memory", "Peak memory", _binning(runs, curves) + dotted, figure)


def _capacity(run: RunFiles, index: int, *, several: bool) -> Drawn | None:
    try:
        capacity, longest = Capacity.from_json(run.tuning["capacity"]), int(run.tuning["max_length"])
    except (KeyError, TypeError, ValueError):
        return None
    varies = len(run.tuning.get("largest_micro_batch") or []) > 1
    lengths = np.unique(np.geomspace(min(8, longest) if varies else longest, longest, 100).round().astype(int))
    figure, panel = panel_of()
    colour = colour_of(index)
    fits = [capacity.num_examples(int(length)) for length in lengths]
    style = "steps-post" if len(lengths) > 1 else "default"
    panel.plot(lengths, fits, color=colour, drawstyle=style, marker="" if len(lengths) > 1 else "_", markersize=30)
    panel.fill_between(lengths, 0.8, fits, step="post", color=colour, alpha=0.12, linewidth=0)
    used = used_micro_batches(run)
    if used is not None:
        panel.plot(
            *used, "o", color=SERIES[1], markersize=2.5, alpha=0.7, linestyle="", label="steps, each as its mean"
        )
    _probes(panel, run)
    panel.set(xscale="log", yscale="log", xlabel=f"{run.unit} of an example", ylabel="examples at once")
    ticks = [2**power for power in range(21) if lengths[0] <= 2**power <= longest]
    panel.set_xticks(ticks or [longest])
    panel.xaxis.set_major_formatter("{x:.0f}")
    panel.set_yticks(
        [2**power for power in range(0, 21, 1 if capacity.most < 64 else 2) if 2**power <= capacity.most]
    )
    panel.set_ylim(0.8, 1.3 * capacity.most)
    panel.yaxis.set_major_formatter("{x:.0f}")
    panel.minorticks_off()
    _legend(panel, fewest=1)
    how = "found by the tuner" if capacity.peak is not None else "as given, nothing was measured"
    points = (
        " A run writes down how many micro-batches a step had, not each: a point is the mean micro-batch of steps."
        if used is not None
        else " The micro-batches that were used are not shown: an example has several rows in them here."
    )
    title = f"Capacity by length: {run.name}" if several else "Capacity by length"
    ranks = f" Of the first of {len(run.tuning['ranks'])} ranks." if run.tuning.get("ranks") else ""
    return Drawn(
        f"capacity-{index + 1}" if several else "capacity",
        title,
        f"The largest micro-batch at each length, {how}.{points}{ranks}",
        figure,
    )


def used_micro_batches(run: RunFiles) -> tuple[np.ndarray, np.ndarray] | None:
    """The mean micro-batch of each step, as length (with padding) and number of examples; those alike to 1 % once.

    Where capacity falls with the length as 1 / length, up to a greatest number, such means lie within it if all of
    their micro-batches do. None: there are no steps, or an example is in several rows of a micro-batch (its windows,
    or its two texts), so that the means would be of something else.
    """
    if run.config.get("long_texts") == "windows" or "query_column" in run.config:
        return None
    micro_batches, examples = run.steps.of("num_micro_batches"), run.steps.of("num_examples")
    length, number = _ratio(run.steps.of("num_padded_tokens"), examples), _ratio(examples, micro_batches)
    known = np.isfinite(length) & np.isfinite(number) & (length > 0) & (number > 0)
    if not known.any():
        return None
    rounded = np.unique(np.exp(np.stack([np.log(length[known]), np.log(number[known])]).round(2)), axis=1)
    return rounded[0], rounded[1]


def _probes(panel: Any, run: RunFiles) -> None:
    probes = [probe for probe in run.tuning.get("probes") or [] if isinstance(probe, dict)]
    for fits, marker, label in ((True, "s", "tried, fits"), (False, "x", "tried, too large")):
        of_kind = [p for p in probes if p.get("fits") is fits and {"length", "num_examples"} <= p.keys()]
        if of_kind:
            points = sorted({(p["length"], p["num_examples"]) for p in of_kind})
            style: dict[str, Any] = {"color": INK, "markersize": 5, "markerfacecolor": "none", "linestyle": ""}
            panel.plot(*zip(*points, strict=True), marker=marker, label=label, **style)
