"""Figures of what a run reached on held-out examples."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_accum.report.figures import Drawn, in_legend, panel_of
from hf_accum.report.held_out import Confusion, LabelCounts
from hf_accum.report.run_files import RunFiles
from hf_accum.report.style import INK, MUTED, PAPER, SERIES, colour_of

_MOST_LABELS = 40
_LONGEST_NAME = 30  # characters
_OF_A_BIN = ("confidence", "accuracy", "count")
_READABLE_ON_A_PHONE = 10  # classes


def reliability(runs: Sequence[RunFiles]) -> Drawn | None:
    """How often decisions were right, over the confidence with which they were made; None: no run has it."""
    tables = [(index, bins) for index, run in enumerate(runs) if (bins := reliability_bins(run))]
    if not tables:
        return None
    figure, panel = panel_of((4.6, 3.4))
    panel.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1)
    for index, bins in tables:
        confidence, accuracy, count = (np.array(column) for column in zip(*bins, strict=True))
        colour = colour_of(index)
        panel.plot(confidence, accuracy, color=colour, linewidth=1, label=in_legend(runs[index].name))
        panel.scatter(confidence, accuracy, s=12 + 120 * count / count.max(), color=colour, alpha=0.6, linewidth=0)
    panel.set(xlabel="confidence", ylabel="share that is right", xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))
    if len(tables) > 1:
        panel.legend(loc="upper left")
    caption = "A point for each bin of confidence that has examples, as large as it has many. On the dashed line, a "
    return Drawn("reliability", "Reliability", f"{caption}confidence says how often one is right.", figure)


def reliability_bins(run: RunFiles) -> list[tuple[float, float, int]]:
    """Confidence, accuracy and count of each bin that has examples."""
    calibration = run.evaluation.get("calibration")
    bins: Any = calibration.get("reliability") if isinstance(calibration, dict) else None
    found: list[tuple[float, float, int]] = []
    for one in bins if isinstance(bins, list) else []:
        values: list[Any] = [one.get(name) if isinstance(one, dict) else None for name in _OF_A_BIN]
        if all(isinstance(value, int | float) for value in values) and values[2] > 0:
            found.append((float(values[0]), float(values[1]), int(values[2])))
    return found


def taken_for(counted: Confusion | LabelCounts) -> Drawn:
    """Which class was taken for which; of several labels for each example, how each was given."""
    return _confusion(counted) if isinstance(counted, Confusion) else _labels(counted)


def _confusion(confusion: Confusion) -> Drawn:
    from matplotlib.patches import Rectangle

    shown = confusion.shortened()
    number = len(shown.names)
    side = 0.27 * number
    figure, panel = panel_of((max(3.6, side + 2.7), max(2.2, side + 0.9)))
    share = shown.counts / np.maximum(shown.counts.sum(axis=1, keepdims=True), 1)
    for true, predicted in zip(*np.nonzero(shown.counts), strict=True):
        colour, alpha = SERIES[0 if true == predicted else 1], 0.12 + 0.88 * float(share[true, predicted])
        corner = (predicted - 0.5, true - 0.5)
        panel.add_patch(Rectangle(corner, 1, 1, facecolor=colour, alpha=alpha, linewidth=0))
        text = f"{shown.counts[true, predicted]:,}"
        ink = PAPER if alpha > 0.6 else INK
        size = 8 if len(text) < 4 else 6 if len(text) < 6 else 4.5
        panel.text(predicted, true, text, ha="center", va="center", fontsize=size, color=ink)
    panel.set(xlim=(-0.5, number - 0.5), ylim=(number - 0.5, -0.5), aspect="equal", xlabel="predicted", ylabel="true")
    panel.set_xticks(range(number), [str(index + 1) for index in range(number)], fontsize=7)
    panel.set_yticks(range(number), [f"{_short(name)}  {i + 1}" for i, name in enumerate(shown.names)], fontsize=7)
    panel.xaxis.tick_top()
    panel.xaxis.set_label_position("top")
    panel.grid(visible=False)
    panel.spines[:].set_visible(False)
    others = (
        f" The {number - 1} most frequent classes; the others are one row and column."
        if shown is not confusion
        else ""
    )
    caption = (
        "Counts of held-out examples: a row for each true class, a column for each predicted one. The colour is the "
        f"share of the true class; blue is right.{others}"
    )
    return Drawn("confusion", "Confusion matrix", caption, figure, is_wide=number > _READABLE_ON_A_PHONE)


def _labels(counts: LabelCounts) -> Drawn:
    order = np.argsort(-(counts.right + counts.missed), kind="stable")[:_MOST_LABELS]
    figure, panel = panel_of((4.6, 0.24 * len(order) + 1.1))
    left = np.zeros(len(order))
    parts = (
        ("right", counts.right, SERIES[0]),
        ("missed", counts.missed, SERIES[4]),
        ("wrong", counts.wrong, SERIES[1]),
    )
    for name, values, colour in parts:
        panel.barh(range(len(order)), values[order], left=left, color=colour, label=name)
        left += values[order]
    panel.set_yticks(range(len(order)), [_short(counts.names[index]) for index in order], fontsize=7)
    panel.invert_yaxis()
    panel.grid(visible=False, axis="y")
    panel.set_xlabel("held-out examples")
    panel.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3)
    most = (
        f" The {len(order)} most frequent of {len(counts.names):,} labels." if len(order) < len(counts.names) else ""
    )
    caption = f"How often each label was given rightly, missed, or given wrongly.{most}"
    return Drawn("labels", "Labels", caption, figure)


def _short(name: str) -> str:
    name = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."
