"""`hf-accum compare`: two runs on the same rows, and a rule that decides."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_accum.cli.exit import FAULT
from hf_accum.cli.one_process import is_first_process
from hf_accum.cli.recipes import recipe_of
from hf_accum.errors import UserError

if TYPE_CHECKING:
    from types import ModuleType

    from hf_accum.config.recipe import RecipeConfig
    from hf_accum.evaluation.comparison import Difference, Rule, Side

    _Opened = tuple[ModuleType, RecipeConfig]

_COMPARE = f"""Two runs that are through, on the same rows: the figures of both, and the 95 % interval of their
differences, by a bootstrap over groups in which both get the same draws. With --require the status is {FAULT} where
the second run is not as good as the rule asks. Flags of their recipe say how rows are read."""


def add_to(commands: "argparse._SubParsersAction[Any]") -> None:
    """The command's own flags, and its work: `work(parsed, flags)`, of which the recipes read the flags."""
    parser = commands.add_parser(
        "compare", help="two runs on the same rows", description=_COMPARE, allow_abbrev=False
    )
    parser.add_argument(
        "runs", nargs=2, metavar="RUN", help="their folders: the earlier run, and the one in question"
    )
    parser.add_argument(
        "--dataset", help="hub id, folder or file, all rows of it; default: what both held out, or their sample of it"
    )
    parser.add_argument("--split", default="train", help="the split of --dataset; a file is called train")
    parser.add_argument("--require", help="not_worse:FIGURE:MARGIN, as not_worse:macro_f1:0.01, or better:FIGURE")
    parser.add_argument("--output", metavar="FILE", help="what was found, as JSON")
    parser.add_argument("--recipe", help="the recipe, where the runs do not say by which they were made")
    parser.set_defaults(work=_compare)


def _compare(parsed: argparse.Namespace, flags: list[str]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    from hf_accum.distributed.launch import keeping_processes
    from hf_accum.evaluation.comparison import Rule, compared
    from hf_accum.files import check_new_file, json_safe, why_not_written, write_json
    from hf_accum.run.shown_figures import short, show_table

    if parsed.output is not None:
        check_new_file(Path(parsed.output))
    rule = None if parsed.require is None else Rule.of(parsed.require)
    with keeping_processes():
        folders = [Path(folder).expanduser().resolve() for folder in parsed.runs]
        (first, second), others = _sides(folders, parsed, flags, rule)
    found = compared(first, second)
    if others is not None:  # in which what a run does not know has no probability
        found.pop("loss", None)
    is_kept = rule is None or rule.is_kept(found)
    is_first = is_first_process()  # all ranks have found the same
    console = Console(soft_wrap=True, quiet=not is_first)
    names = [folder.name for folder in folders]
    names = parsed.runs if names[0] == names[1] else names
    table = Table(Column("figure", overflow="fold"), *map(escape, names), "difference", "95 %")
    for name, one in found.items():
        between = "-" if one.interval is None else f"{one.interval[0]:+.4f} to {one.interval[1]:+.4f}"
        values = (short(one.first), short(one.second), f"{one.second - one.first:+.4f}")
        table.add_row(name, *("-" if "nan" in value else value for value in values), between)
    console.print(f"{len(first.groups):,} rows in {int(first.groups.max()) + 1:,} groups", markup=False)
    show_table(console, table)
    if others is not None:
        console.print(f"note: one run does not know all {others} of the other: they count as wrong, and have no loss")
    if parsed.output is not None and is_first:
        try:
            write_json(Path(parsed.output), json_safe(_as_json(parsed, found, is_kept)))
        except OSError as error:
            why = why_not_written(Path(parsed.output), error)
            raise UserError(f"`output` {parsed.output}: cannot be written ({why})") from error
    if rule is not None:
        gain = rule.gain_at_least(found)
        may_be = f"worse by {-gain:.4f}" if gain < 0 else "no better"
        told = "kept" if is_kept else f"not kept: {rule.figure} may be {may_be}, as far as these rows can tell"
        console.print(f"{parsed.require}: {told}", markup=False, highlight=False)
    if not is_kept:
        raise SystemExit(FAULT)


def _sides(
    folders: list[Path], parsed: argparse.Namespace, flags: list[str], rule: "Rule | None"
) -> "tuple[list[Side], str | None]":
    """Both runs judged: where one has learned labels that the other has not, both on rows with all of them.

    Also, if that is so, the flag that has them. A rule with a figure that they do not have is refused before.
    """
    from dataclasses import replace

    from hf_accum.cli.evaluation import ALL_ROWS, flag_of_labels
    from hf_accum.models.usage import read_usage
    from hf_accum.run.result import check_through

    usages = [read_usage(check_through(folder)) for folder in folders]
    tasks = [usage.task for usage in usages if usage is not None]  # a run of an earlier version does not say it
    if len(set(tasks)) > 1:
        raise UserError(f"the two runs have different tasks: {' and '.join(tasks)}")
    of_all = [] if parsed.dataset is None else [ALL_ROWS]
    opened = [recipe_of(folder, parsed.recipe, [*of_all, *flags], parsed.own) for folder in folders]
    sizes = [config.max_eval_examples for _, config in opened]
    size = sizes[0] if sizes[0] == sizes[1] else None  # a sample of so many is the same one in both
    seed = opened[0][1].seed  # by which masks are drawn: the same for both
    opened = [(module, replace(config, seed=seed, max_eval_examples=size)) for module, config in opened]
    opened = _with_names_of_both(opened)
    _tell_sample(parsed.dataset, *sizes)
    columns = [_columns_of(config, flag_of_labels(config)) for _, config in opened]
    of_others = [
        {label: column for label, column in others.items() if own and label not in own}
        for own, others in zip(columns, reversed(columns), strict=True)
    ]
    if rule is not None:
        known = dict.fromkeys(name for folder in folders for name in _figures_in(folder))
        rule.check([name for name in known if name != "loss" or not any(of_others)])
    sides, flag = [], None
    for folder, (module, config), more in zip(folders, opened, of_others, strict=True):
        flag = flag_of_labels(config) if more else flag
        sides.append(_judged(folder, module, config, parsed, more))
    return sides, flag


def _tell_sample(dataset: str | None, first: int | None, second: int | None) -> None:
    """Say which rows are compared on, where a run was not evaluated on all that it held out."""
    from hf_accum.config.flags import as_flags, flag_names

    if (first is None and second is None) or not is_first_process():
        return
    of = "what both held out" if dataset is None else dataset
    if first == second:
        note = f"on a sample of {of}, at most {first:,} rows, the same for both (`max_eval_examples`; null: all rows)"
    else:
        one, other = ("all" if size is None else f"at most {size:,}" for size in (first, second))
        note = f"on all rows of {of}: the runs were evaluated on {one} and {other} of them (`max_eval_examples`)"
    print(as_flags(f"note: {note}", flag_names()))


def _figures_in(folder: Path) -> list[str]:
    """The names of the figures that runs like this one are compared by, as its own evaluation has them.

    Raises:
        UserError: if that cannot be read.
    """
    file = folder / "evaluation.json"
    try:
        figures = json.loads(file.read_text(encoding="utf-8"))
        if known := figures.get("confidence_intervals"):
            return list(known)
        # One group alone was held out: any that is a number, or was none there.
        is_other = ("step", "num_")
        return [n for n, v in figures.items() if not isinstance(v, dict | list) and not n.startswith(is_other)]
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from error


def _with_names_of_both(opened: "list[_Opened]") -> "list[_Opened]":
    """Where tags are numbers and one run has names for more of them, the other one reads rows by these too."""
    from dataclasses import replace

    names = [getattr(config, "labels", []) if hasattr(config, "types") else [] for _, config in opened]
    short, long = sorted(names, key=len)
    if short == long or short != long[: len(short)]:
        return opened
    more: dict[str, Any] = {"labels": long}
    return [(module, replace(config, **more)) for module, config in opened]


def _columns_of(config: "RecipeConfig", flag: str) -> dict[str, str | None]:
    """The labels of a run, each with its column where it has one of its own."""
    labels, column = list(getattr(config, flag, ())), getattr(config, "label_column", None)
    return dict(zip(labels, column, strict=True)) if isinstance(column, list) else dict.fromkeys(labels)


def _judged(
    folder: Path,
    module: "ModuleType",
    config: "RecipeConfig",
    parsed: argparse.Namespace,
    more: Mapping[str, str | None],
) -> "Side":
    from hf_accum.cli.evaluation import notes_of, open_evaluation
    from hf_accum.config.flags import as_flags, flag_names
    from hf_accum.evaluation.comparison import Side
    from hf_accum.tasks.judging import Classifies

    on_rows = (parsed.dataset, parsed.split)
    with open_evaluation(module, folder, config, *on_rows, more_labels=more) as opened:
        for note in notes_of(opened.data) if opened.ranks.index == 0 else ():
            print(as_flags(f"note: {folder.name}: {note}", flag_names()))
        if not isinstance(opened.task, Classifies):
            if opened.ranks.count > 1:  # what a bootstrap computes the figures of stays in a process
                raise UserError("runs of this task are compared in one process: start it without `accelerate launch`")
            return Side.of_figures(opened.evaluation.figures(opened.model, opened.cutter, opened.folder))
        judged = opened.evaluation.judged(opened.model, opened.cutter)
        is_regression = getattr(config, "problem", None) == "regression"
        return Side.of_each(judged, None if is_regression else opened.task.decisions)


def _as_json(parsed: argparse.Namespace, found: "dict[str, Difference]", is_kept: bool) -> dict[str, object]:
    figures = {
        name: {
            "first": one.first,
            "second": one.second,
            "interval_of_difference": None if one.interval is None else list(one.interval),
        }
        for name, one in found.items()
    }
    ruled = {} if parsed.require is None else {"require": parsed.require, "is_kept": is_kept}
    return {"runs": [str(folder) for folder in parsed.runs], "dataset": parsed.dataset, "figures": figures, **ruled}
