"""A plan as a picture: the largest micro-batch over the length, a line for each memory size or card.

Where all examples have one length it is a bar for each.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_accum.tuner.plan import MOST_SHOWN, Variant
from hf_accum.tuner.targets import Target


def draw(variants: Sequence[Variant], targets: Sequence[Target], path: Path) -> None:
    """Draw one panel for each variant into an .svg or .png file; it is there whole or not."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(variants) + 0.8, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(variants), sharey=True, squeeze=False)[0]
    vary = variants[0].lengths.vary
    for panel, variant in zip(panels, variants, strict=True):
        (_draw_lines if vary else _draw_bars)(panel, variant, targets)
        panel.set(title=variant.name, yscale="log")
        panel.yaxis.set_major_formatter("{x:.0f}")
        panel.minorticks_off()
        panel.grid(alpha=0.3, axis="both" if vary else "y")
    panels[0].set_ylabel("largest micro-batch (predicted)")
    if vary:
        found = [panel.get_legend_handles_labels() for panel in panels]
        lines = {label: line for handles, labels in found for line, label in zip(handles, labels, strict=True)}
        shown = [target.name for target in targets if target.name in lines]
        figure.legend([lines[label] for label in shown], shown, loc="outside right upper", title="memory")
    else:
        budget = max(target.budget_bytes for target in targets)
        most = max(variant.largest(variant.max_length, budget, MOST_SHOWN) for variant in variants)
        panels[0].set_ylim(0.8, 2 * max(most, 5))  # a bar of one example is seen, and the number above the highest
    partial = path.with_name(f".{path.name}.partial")
    try:
        figure.savefig(partial, format=path.suffix[1:], dpi=150)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _draw_lines(panel: Any, variant: Variant, targets: Sequence[Target]) -> None:
    shortest = min(16, variant.max_length)
    lengths = sorted({round(shortest * (variant.max_length / shortest) ** (i / 60)) for i in range(61)})
    for index, target in enumerate(targets):
        numbers = [variant.largest(length, target.budget_bytes, MOST_SHOWN) for length in lengths]
        fitting = [(length, number) for length, number in zip(lengths, numbers, strict=True) if number]
        if fitting:
            style = {"drawstyle": "steps-post", "color": f"C{index}", "label": target.name}
            panel.plot(*zip(*fitting, strict=True), **style)
    panel.set(xlabel=f"{variant.lengths.unit} of an example", xscale="log")
    panel.set_xticks([2**power for power in range(4, 21) if shortest <= 2**power <= variant.max_length])
    panel.xaxis.set_major_formatter("{x:.0f}")


def _draw_bars(panel: Any, variant: Variant, targets: Sequence[Target]) -> None:
    numbers = [variant.largest(variant.max_length, target.budget_bytes, MOST_SHOWN) for target in targets]
    places = range(len(targets))
    bars = panel.bar(places, numbers, color=[f"C{index}" for index in places])
    panel.bar_label(bars, [_shown(number) for number in numbers], padding=2)
    panel.set_xlabel(f"memory, for examples of {variant.max_length} {variant.lengths.unit}")
    panel.set_xticks(places, [target.name for target in targets], rotation=30)


def _shown(number: int) -> str:
    return "" if number == 0 else f"{number}+" if number == MOST_SHOWN else str(number)
