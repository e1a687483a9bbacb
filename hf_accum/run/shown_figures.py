"""The figures of an evaluation for a person: in a line, by class, with their intervals and notes."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

_WIDE = 1_000  # columns


def in_a_line(figures: Mapping[str, Any]) -> str:
    """The single figures."""
    return "  ".join(f"{name} {short(value)}" for name, value in single(figures).items())


def single(figures: Mapping[str, Any]) -> dict[str, int | float]:
    """The figures that are one number."""
    return {name: value for name, value in figures.items() if isinstance(value, int | float)}


def short(value: float) -> str:
    """A number with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def show_classes(console: Console, figures: Mapping[str, Any]) -> None:
    """How each class fares, where there are classes, as a table."""
    per_class: Mapping[str, Mapping[str, float | None]] = figures.get("per_class", {})
    if not per_class:
        return
    columns = list(next(iter(per_class.values())))
    headers = [name.replace("_", " ") for name in columns]
    how: dict[str, Any] = {"box": SIMPLE_HEAD, "pad_edge": False, "collapse_padding": True}
    table = Table("class", *headers, title="by class", title_justify="left", **how)
    for name, row in per_class.items():
        cells = (
            "-" if v is None else f"{v:.0f}" if k in ("support", "predicted") else f"{v:.3f}" for k, v in row.items()
        )
        table.add_row(Text(name), *cells)  # not as markup: it is the data's
    show_table(console, table)


def show_table(console: Console, table: Table) -> None:
    """Print a table; whole where that is to no terminal: lines of 80 columns would fold or cut long names."""
    if not console.is_terminal:
        whole = Measurement.get(console, console.options.update(max_width=_WIDE), table).maximum
        console = Console(file=console.file, width=max(whole, console.width), soft_wrap=True, quiet=console.quiet)
    console.print(table)


def lines_of(figures: Mapping[str, Any]) -> Iterator[str]:
    """The intervals, and what else is to be said."""
    intervals = figures.get("confidence_intervals")
    if intervals:
        how = figures["bootstrap"]
        known = {name: interval for name, interval in intervals.items() if interval is not None}
        shown = "  ".join(f"{name} {short(low)} to {short(high)}" for name, (low, high) in known.items())
        yield f"{how['level']:.0%} intervals, by a bootstrap over {how['num_groups']:,} groups: {shown}"
    yield from (f"note: {note}" for note in figures.get("notes", ()))
