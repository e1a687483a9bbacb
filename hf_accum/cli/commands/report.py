"""`hf-accum report`: runs as a page to look at."""

import argparse
from pathlib import Path
from typing import Any

from hf_accum.cli.one_process import check_one_process
from hf_accum.cli.unknown_flags import refuse

_REPORT = """Show a run, or several side by side, as one HTML page: what it was, its curves, its speed and memory, its
figures on held-out examples with the worst of these, and what happened. The page needs no network and no script."""


def add_to(commands: "argparse._SubParsersAction[Any]") -> None:
    """The command's own flags, and its work: `work(parsed, flags)`, which takes no others."""
    parser = commands.add_parser(
        "report", help="a page to look at, of a run or several", description=_REPORT, allow_abbrev=False
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the folder of a run, its --output_dir")
    parser.add_argument("--output", metavar="FILE", help="the page; default: report.html in the folder of the run")
    parser.add_argument("--figures", metavar="FOLDER", help="each figure as .svg and .png too, into this folder")
    parser.add_argument(
        "--no_texts",
        action="store_true",
        help="leave out held-out examples' texts, and notes that may quote the data",
    )
    parser.add_argument(
        "--watch", action="store_true", help="write it again while a run goes on, until it is through"
    )
    parser.set_defaults(work=_report)


def _report(parsed: argparse.Namespace, flags: list[str]) -> None:
    from hf_accum.report.write import watch, write_report

    refuse(flags, "is no flag of hf-accum report", parsed.own)
    check_one_process("report")
    folders = [Path(run) for run in parsed.runs]
    output, figures = (None if place is None else Path(place) for place in (parsed.output, parsed.figures))
    if parsed.watch:
        watch(folders, output, figures=figures, texts=not parsed.no_texts)
        return
    page, _ = write_report(folders, output, figures=figures, texts=not parsed.no_texts)
    print(f"written: {page}")
