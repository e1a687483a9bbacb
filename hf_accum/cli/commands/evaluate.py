"""`hf-accum evaluate`: the figures of a run that is through, on other data."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_accum.cli.exit import run
from hf_accum.cli.recipes import recipe_of
from hf_accum.errors import UserError
from hf_accum.files import check_vacant

if TYPE_CHECKING:
    from types import ModuleType

    from hf_accum.config.recipe import RecipeConfig

_EVALUATE = """The figures of a run that is through, with their intervals: on other data, of which all rows are
evaluated, or, without --dataset, on what the run held out. Flags of its recipe say how rows are read (--text_column,
--on_bad_row skip, --micro_batch_size 8, ...); what is not given is as in the run."""


def add_to(commands: "argparse._SubParsersAction[Any]") -> None:
    """The command's own flags, and its work: `work(parsed, flags)`, of which the recipe reads the flags."""
    parser = commands.add_parser(
        "evaluate", help="the figures of a run on other data", description=_EVALUATE, allow_abbrev=False
    )
    parser.add_argument("run", metavar="RUN", help="the folder of a run, its --output_dir")
    parser.add_argument("--dataset", help="hub id, folder or file; default: what the run held out")
    parser.add_argument("--split", default="train", help="the split of --dataset; a file is called train")
    parser.add_argument("--output", metavar="FOLDER", help="evaluation.json and each example's prediction, in here")
    parser.add_argument("--recipe", help="the recipe, where the run does not say by which it was made")
    parser.set_defaults(work=_evaluate)


def _evaluate(parsed: argparse.Namespace, flags: list[str]) -> None:
    from hf_accum.cli.evaluation import ALL_ROWS

    folder = Path(parsed.run).expanduser().resolve()
    output = None if parsed.output is None else Path(parsed.output).expanduser().resolve()
    if output is not None:
        check_vacant(output)
    all_flags = flags if parsed.dataset is None else [ALL_ROWS, *flags]
    module, config = recipe_of(folder, parsed.recipe, all_flags, parsed.own)
    run(lambda: evaluate_run(module, folder, config, parsed.dataset, parsed.split, output), config)


def evaluate_run(
    module: "ModuleType",
    folder: Path,
    config: "RecipeConfig",
    dataset: str | None,
    split: str = "train",
    output: Path | None = None,
) -> Mapping[str, Any]:
    """The figures of a run, as `open_evaluation` opens it; shown, and in `output` as files: all of them or none.

    A collective.

    Raises:
        UserError: as `open_evaluation` does; if the files cannot be written.
    """
    from contextlib import nullcontext

    from rich.console import Console

    from hf_accum.cli.evaluation import notes_of, open_evaluation
    from hf_accum.config.flags import as_flags, flag_names
    from hf_accum.distributed.collectives import on_rank_0
    from hf_accum.evaluation.records import NOT_WRITTEN, PREDICTIONS
    from hf_accum.files import beside, json_safe, why_not_written, write_json
    from hf_accum.run.shown_figures import in_a_line, lines_of, show_classes

    console = Console(soft_wrap=True)

    def write(place: Path, figures: Mapping[str, Any]) -> None:
        if output is None:
            return
        if unwritten := [note for note in figures.get("notes", ()) if note.startswith(NOT_WRITTEN)]:
            raise UserError(f"`output` {output}: {unwritten[0]}; nothing is left of it")
        try:
            write_json(place / "evaluation.json", json_safe(dict(figures)))
            output.parent.mkdir(parents=True, exist_ok=True)
            place.rename(output)
        except OSError as error:
            why = why_not_written(output, error)
            raise UserError(f"`output` {output}: could not be written ({why}); nothing is left of it") from error

    with (
        nullcontext() if output is None else beside(output) as place,
        open_evaluation(module, folder, config, dataset, split, place) as opened,
    ):
        figures = opened.evaluation.figures(opened.model, opened.cutter, opened.folder)
        if opened.ranks.index == 0:
            of = "what the run held out" if dataset is None else dataset
            console.print(f"{folder.name} on {of}: {in_a_line(figures)}", markup=False, highlight=False)
            show_classes(console, figures)
            for note in notes_of(opened.data):
                console.print(as_flags(f"note: {note}", flag_names()), markup=False, highlight=False)
            for reason, number in opened.data.bad_rows.items():
                console.print(f"left out: {number:,} bad rows ({reason})", markup=False, highlight=False)
            for line in lines_of(figures):
                if PREDICTIONS not in line or (output is not None and NOT_WRITTEN not in line):
                    console.print(as_flags(line, flag_names()), markup=False, highlight=False)
        on_rank_0(opened.ranks, lambda: write(opened.folder, figures))
        if output is not None and opened.ranks.index == 0:
            console.print(f"written: {output}", markup=False, highlight=False)
    return figures
