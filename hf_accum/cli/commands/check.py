"""`hf-accum check`: is the gradient of a loss the same, however its batch is cut?"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_accum.cli.exit import run
from hf_accum.cli.own_function import call_function
from hf_accum.cli.parser import parse
from hf_accum.cli.recipes import config_class_of, find_recipe
from hf_accum.cli.unknown_flags import refuse
from hf_accum.errors import UserError, first_line

if TYPE_CHECKING:
    from rich.table import Table

    from hf_accum.gradient_check.report import Report

FOUND = 1
"""A process's status where a check has found a fault: of a failure of the command itself the message says so."""

_CHECK = f"""Is the gradient the same, however a batch is cut? In float64: one unsplit batch beside cuts, orders,
ranks, more padding and repeated runs, of a recipe with its flags, of `module:function` in your project (which returns
the model, the summed loss and a list of batches), or, by --model and --head, of the own loss of a transformers head.
Status 0: no fault; {FOUND}: a fault in the loss or the model (or, as its message says, of the program); 2: a
mistake of yours."""


def add_to(commands: "argparse._SubParsersAction[Any]") -> None:
    """The command's own flags, and its work: `work(parsed, flags)`, of which a recipe reads the flags."""
    parser = commands.add_parser(
        "check", help="does the gradient depend on how a batch is cut?", description=_CHECK, allow_abbrev=False
    )
    parser.add_argument("what", nargs="?", help="a recipe, with its flags; or module:function of your project")
    parser.add_argument("--model", help="of the recipe, or whose head is checked: a hub id or a local folder")
    parser.add_argument("--head", help="the own loss of --model with this head, on made-up rows")
    parser.add_argument("--heads", metavar="FILE", help="a table of transformers' heads instead, written as Markdown")
    parser.add_argument("--made_up", action="store_true", help="made-up rows in the place of the recipe's data")
    parser.add_argument("--strict", action="store_true", help=f"status {FOUND} for warnings too")
    parser.add_argument("--json", metavar="FILE", help="write what was found, for programs")
    parser.set_defaults(work=_check)


def _check(parsed: argparse.Namespace, flags: list[str]) -> None:
    if parsed.json is not None and not Path(parsed.json).parent.is_dir():
        raise UserError(f"--json {parsed.json}: has to be in a folder that is there")
    if parsed.json is not None and Path(parsed.json).is_dir():
        raise UserError(f"--json {parsed.json}: has to be a file, it is a folder")
    if sum(given is not None for given in (parsed.what, parsed.head, parsed.heads)) != 1:
        raise UserError("has to be given one of: a recipe, a module:function, --model with --head, or --heads")
    if parsed.heads is not None:
        refuse(flags, "says nothing beside --heads")
        run(lambda: _write_heads(Path(parsed.heads)), debug="--debug" in flags)
        return
    if parsed.head is not None:
        refuse(flags, "says nothing beside --head, which takes --model alone")
        run(lambda: _end(_of_head(parsed.model, parsed.head), parsed), debug="--debug" in flags)
    elif ":" in parsed.what:
        of_model = [] if parsed.model is None else ["--model"]
        refuse([*of_model, *flags], f"says nothing here: {parsed.what} gives the model and the batches itself")
        run(lambda: _end(_of_function(parsed.what), parsed), debug="--debug" in flags)
    else:
        module = find_recipe(parsed.what)
        of_model = [] if parsed.model is None else [f"--model={parsed.model}"]
        config = parse(config_class_of(module, parsed.what), _CHECK, [*of_model, *flags], parsed.own)
        run(lambda: _end(_of_recipe(module, config, parsed), parsed), config)


def _of_recipe(module: Any, config: Any, parsed: argparse.Namespace) -> "Report":
    from hf_accum.cli.made_up_rows import with_made_up_rows
    from hf_accum.cli.recipe_check import check_recipe

    if not parsed.made_up:
        return check_recipe(module, config, parsed.what)
    with with_made_up_rows(config) as changed:
        return check_recipe(module, changed, f"{parsed.what}, made-up rows")


def _of_function(place: str) -> "Report":
    from hf_accum.gradient_check.check import check

    given = call_function(place)
    if hasattr(given, "_asdict"):
        given = given._asdict()
    if isinstance(given, tuple) and len(given) == 3:
        given = dict(zip(("model", "summed_loss", "batches"), given, strict=True))
    if not isinstance(given, Mapping):
        raise UserError(f"{place}: has to return (model, summed_loss, batches), or a mapping of what `check` takes")
    try:
        return check(**{"name": place, **given})
    except TypeError as error:
        if "check()" not in str(error):
            raise
        raise UserError(f"{place}: what it returns is not what `check` takes ({first_line(error)})") from error


def _of_head(name: str | None, head: str) -> "Report":
    if name is None:
        raise UserError("--head: has to go with --model, a hub id or a local folder")
    from hf_accum.gradient_check.heads import HEADS

    if head not in HEADS:
        raise UserError(f"--head {head}: has to be of {', '.join(HEADS)}")
    from hf_accum.cli.head_check import check_head

    return check_head(name, head)


def _write_heads(file: Path) -> None:
    from rich.console import Console

    from hf_accum.files import write_atomically
    from hf_accum.gradient_check.head_table import as_markdown, head_rows

    if not file.parent.is_dir() or file.is_dir():
        raise UserError(f"--heads {file}: has to be a file in a folder that is there")
    console, rows = Console(soft_wrap=True), []
    for row in head_rows():
        rows.append(row)
        console.print(row.failed or row.as_markdown(), markup=False, highlight=False)
    write_atomically(file, as_markdown(rows, f"hf-accum check --heads {file}"))


def _end(report: "Report", parsed: argparse.Namespace) -> None:
    """Show a report, write it, and end with its status."""
    from rich.console import Console

    console = Console(soft_wrap=True)
    console.print(
        f"{report.name}: {report.num_examples} examples, {report.num_parameters:,} parameters, in float64",
        markup=False,
        highlight=False,
    )
    console.print(_compared(report))
    for finding in report.findings:
        colour = "red" if finding.severity == "fault" else "yellow"
        console.print(f"[{colour}]{finding.severity}[/]: {finding.title}")
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in finding.numbers.items())
        for line in (finding.why, numbers, f"way out: {finding.way_out}"):
            console.print(f"  {line}", markup=False, highlight=False)
    if not report.findings:
        console.print("nothing found: the gradient does not depend on the cut")
    for note in (*report.notes, *(f"not compared: {what}" for what in report.not_compared)):
        console.print(note, markup=False, highlight=False)
    if report.stock:
        console.print(_stock(report))
    if parsed.json is not None:
        from hf_accum.files import write_json

        write_json(Path(parsed.json), report.as_json())
        console.print(f"written: {parsed.json}", markup=False, highlight=False)
    if not report.ok or (parsed.strict and report.findings):
        raise SystemExit(FOUND)


def _compared(report: "Report") -> "Table":
    from rich.table import Table

    table = Table("beside the unsplit batch", "largest relative difference", title_justify="left")
    for what, difference in report.compared.items():
        is_off = not difference <= report.tolerance
        table.add_row(what, f"[red]{difference:.1e}[/]" if is_off else f"{difference:.1e}")
    return table


def _stock(report: "Report") -> "Table":
    from rich.table import Table

    n = report.stock[0].num_examples
    title = f"the gradient of the model's own loss at 1 x {n}, beside that at {n} x 1"
    table = Table("loop", "ratio of norms", "cosine", title=title, title_justify="left")
    for loop in report.stock:
        table.add_row(loop.name, f"{loop.norm_ratio:.3f}", f"{loop.cosine:.4f}")
    return table
