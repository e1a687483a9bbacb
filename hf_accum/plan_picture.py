"""A plan as a picture: the largest micro-batch over the length, a line for each memory size."""

from collections.abc import Sequence
from pathlib import Path

from hf_accum.plan import MOST_SHOWN, Variant
from hf_accum.units import format_bytes


def draw(variants: Sequence[Variant], budgets: Sequence[int], path: Path) -> None:
    """Draw one panel for each variant into an .svg or .png file; it is there whole or not."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(variants) + 0.8, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(variants), sharey=True, squeeze=False)[0]
    for panel, variant in zip(panels, variants, strict=True):
        shortest = min(16, variant.max_length)
        lengths = sorted({round(shortest * (variant.max_length / shortest) ** (i / 60)) for i in range(61)})
        for index, budget in enumerate(budgets):
            numbers = [variant.largest(length, budget, MOST_SHOWN) for length in lengths]
            fitting = [(length, number) for length, number in zip(lengths, numbers, strict=True) if number]
            if fitting:
                style = {"drawstyle": "steps-post", "color": f"C{index}", "label": format_bytes(budget)}
                panel.plot(*zip(*fitting, strict=True), **style)
        panel.set(title=variant.name, xlabel=f"{variant.lengths.unit} of an example", xscale="log", yscale="log")
        panel.set_xticks([2**power for power in range(4, 21) if shortest <= 2**power <= variant.max_length])
        panel.xaxis.set_major_formatter("{x:.0f}")
        panel.yaxis.set_major_formatter("{x:.0f}")
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("largest micro-batch (predicted)")
    lines = {label: line for panel in panels for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    shown = [label for label in map(format_bytes, budgets) if label in lines]
    figure.legend([lines[label] for label in shown], shown, loc="outside right upper", title="memory")
    partial = path.with_name(f".{path.name}.partial")
    try:
        figure.savefig(partial, format=path.suffix[1:], dpi=150)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
