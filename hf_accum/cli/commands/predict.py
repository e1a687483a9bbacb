"""`hf-accum predict`: what a run that is through predicts of the rows of a file."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_accum.cli.exit import OF_COMMANDS, run
from hf_accum.cli.recipes import recipe_of
from hf_accum.errors import UserError

if TYPE_CHECKING:
    from types import ModuleType

    from hf_accum.config.recipe import RecipeConfig

_PREDICT = """What a run that is through predicts of rows, which need no labels: a file with all of their columns, in
their order, and the predictions beside them. It is written part by part, and gone on with where it was stopped.
Flags of the run's recipe say how rows are read (--text_column, --on_bad_row skip, --micro_batch_size 8, ...); what is
not given is as in the run."""


def add_to(commands: "argparse._SubParsersAction[Any]") -> None:
    """The command's own flags, and its work: `work(parsed, flags)`, of which the recipe reads the flags."""
    parser = commands.add_parser(
        "predict", help="what a run predicts of the rows of a file", description=_PREDICT, allow_abbrev=False
    )
    parser.add_argument("run", metavar="RUN", help="the folder of a run, its --output_dir")
    parser.add_argument("--dataset", required=True, help="file, folder, hub id, or - for standard input")
    parser.add_argument("--output", metavar="FILE", required=True, help="a new file .jsonl, .csv or .parquet")
    parser.add_argument("--split", default="train", help="the split of --dataset; a file is called train")
    parser.add_argument("--max_new_tokens", type=int, help="of a language model: the most tokens of a text (256)")
    parser.add_argument("--recipe", help="the recipe, where the run does not say by which it was made")
    parser.set_defaults(work=_predict)


def _predict(parsed: argparse.Namespace, flags: list[str]) -> None:
    from dataclasses import replace

    from hf_accum.run.row_output import check_output

    folder = Path(parsed.run).expanduser().resolve()
    output = Path(parsed.output).expanduser().resolve()
    check_output(output)
    module, config = recipe_of(folder, parsed.recipe, flags, parsed.own)
    config = replace(config, dataset=parsed.dataset, train_split=parsed.split, eval_split=None)
    if parsed.max_new_tokens is not None and parsed.max_new_tokens < 1:
        raise UserError(f"--max_new_tokens {parsed.max_new_tokens}: has to be at least 1")
    how = {} if parsed.max_new_tokens is None else {"max_new_tokens": parsed.max_new_tokens}
    run(lambda: predict_file(module, folder, config, output, **how), config)


def predict_file(module: "ModuleType", folder: Path, config: "RecipeConfig", output: Path, **how: Any) -> None:
    """Write what the run in `folder` predicts of the rows of `config.dataset`. A collective.

    `how` goes to the recipe's function `predictor`.

    Raises:
        UserError: as `open_predictions`, `open_rows_of`, `RowOutput` and `predict_rows` do; if another process is
            writing the file.
        Stopped: if it was asked to stop; the same call goes on.
    """
    import time
    from contextlib import ExitStack

    from rich.console import Console

    from hf_accum.cli.prediction import facts_of, open_early, open_predictions, open_rows_of
    from hf_accum.config.flags import as_flags, flag_names
    from hf_accum.distributed.collectives import on_all_ranks, on_rank_0
    from hf_accum.run.folder import FolderClaim
    from hf_accum.run.row_output import RowOutput
    from hf_accum.run.row_predictions import Asked, notes_of, predict_rows
    from hf_accum.run.signals import StopRequest

    console, names = Console(soft_wrap=True), flag_names() | OF_COMMANDS
    dataset = str(config.dataset)
    source = open_early(config, dataset)
    with open_predictions(module, folder, config, **how) as opened:
        ranks = opened.ranks

        def say(line: str) -> None:
            if ranks.index == 0:
                console.print(as_flags(line, names), markup=False, highlight=False)

        stop = StopRequest(after="these rows", then="what is written is kept then")
        claim = FolderClaim()
        with open_rows_of(config, dataset, ranks, source) as rows, stop, ExitStack() as stack:
            stack.callback(claim.release)
            on_rank_0(ranks, lambda: claim.take_file(output))
            for note in rows.source.notes:
                say(f"note: {note}")
            (rows_output, *_) = on_all_ranks(ranks, lambda: RowOutput(output, facts_of(config, folder, rows, **how)))
            if rows_output.goes_on:
                say(f"going on behind {rows_output.place.num_rows:,} rows, which are there already")
            asked = Asked(config.on_bad_row, config.max_skipped_share, rows.num_rows)
            started, before = time.perf_counter(), rows_output.place.num_rows
            place = predict_rows(opened.rows, rows.source, rows_output, asked, ranks, stop, say)
            seconds = time.perf_counter() - started
        for note in notes_of(place, opened.task.lengths):
            say(f"note: {note}")
        speed = (place.num_rows - before) / seconds
        say(f"{place.num_rows:,} rows, {speed:,.1f} a second, written: {output}")
