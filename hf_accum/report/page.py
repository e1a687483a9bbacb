"""Runs as one HTML page that needs nothing else: no network, no script, no other file."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from hf_accum.report import summary
from hf_accum.report.evaluation_figures import reliability, taken_for
from hf_accum.report.events import Event, events_of
from hf_accum.report.figures import Drawn, memory_figures, speed_figures, training_figures
from hf_accum.report.held_out import Sample, Worst, classes_of, counted, samples_of, worst_of
from hf_accum.report.run_files import RunFiles
from hf_accum.report.style import DARK_VARIABLES, LIGHT_VARIABLES, image_of, inline_svg, styled


@dataclass
class _OfRun:
    """What the page shows of one run alone."""

    run: RunFiles
    events: list[Event]
    worst: list[Worst]
    samples: list[Sample]
    said: list[str]
    """Before the first step: of the data, the machine."""
    notes: list[str]
    """Of the evaluation."""
    columns: list[str]
    """Of its table by class."""
    classes: list[tuple[str, list[str]]]
    figures: list[tuple[Drawn, Markup]] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """A page, and the files of its figures by name: `loss.svg`, `loss.png`."""

    html: str
    figures: dict[str, bytes]


def render(
    runs: Sequence[RunFiles], *, texts: bool = True, with_files: bool = False, reload_seconds: int | None = None
) -> Report:
    """Draw and write the page.

    Args:
        texts: whether held-out examples, and notes that may quote the data, are in it.
        with_files: whether the figures are wanted as files too.
        reload_seconds: after how long a browser is to read the page again, while a run goes on; None: never.
    """
    files: dict[str, bytes] = {}
    number = 0

    def placed(drawn: Drawn, of_run: int | None = None) -> tuple[Drawn, Markup]:
        nonlocal number
        number += 1
        if with_files:
            name = drawn.name if of_run is None or len(runs) == 1 else f"{drawn.name}-{of_run + 1}"
            files.update({f"{name}.{kind}": image_of(drawn.figure, kind) for kind in ("svg", "png")})
        return drawn, Markup(inline_svg(drawn.figure, drawn.title, f"f{number}-"))

    with styled():
        sections = [
            ("Training", [placed(drawn) for drawn in training_figures(runs)]),
            ("Speed", [placed(drawn) for drawn in speed_figures(runs)]),
            ("Memory", [placed(drawn) for drawn in memory_figures(runs)]),
        ]
        together = reliability(runs)
        calibration = [placed(together)] if together else []
        each = [_of_run(run, texts=texts) for run in runs]
        for index, of_run in enumerate(each):
            counts = counted(of_run.run)
            of_run.figures = [placed(taken_for(counts), index)] if counts else []
    was, not_known = summary.known(summary.side_by_side([summary.was(run) for run in runs]))
    html = _template().render(
        runs=runs,
        status=[summary.status_of(run) for run in runs],
        each=each,
        sections=sections,
        calibration=calibration,
        was=was,
        not_known=not_known,
        went=summary.side_by_side([summary.went(run) for run in runs]),
        reached=summary.side_by_side([summary.figures_of(run) for run in runs]),
        intervals=list(dict.fromkeys(said for run in runs if (said := summary.intervals_of(run)))),
        differing=summary.differing(runs) if len(runs) > 1 else [],
        settings=summary.side_by_side([summary.settings_of(run) for run in runs]),
        texts=texts,
        reload_seconds=reload_seconds,
        rendered=time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        light=Markup(LIGHT_VARIABLES),
        dark=Markup(DARK_VARIABLES),
        num_series=8,
    )
    return Report(html, files)


def _of_run(run: RunFiles, *, texts: bool) -> _OfRun:
    rows = classes_of(run)
    columns = list(dict.fromkeys(name for _, row in rows for name in row))
    return _OfRun(
        run,
        events=events_of(run),
        worst=worst_of(run, texts=texts),
        samples=samples_of(run) if texts else [],
        said=_texts(run.facts.get("notes") if texts else None),
        notes=_texts(run.evaluation.get("notes")),
        columns=columns,
        classes=[(name, [summary.cell(column, row.get(column)) for column in columns]) for name, row in rows],
    )


def _texts(value: Any) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else []


def _template() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string((resources.files("hf_accum.report") / "page.html").read_text(encoding="utf-8"))
