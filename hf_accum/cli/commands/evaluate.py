"""`hf-accum evaluate`: the figures of a run that is through, on other data."""

import argparse
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from hf_accum.cli.exit import run
from hf_accum.errors import UserError

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
    from hf_accum.cli.finished_run import recipe_of

    folder = Path(parsed.run).expanduser().resolve()
    output = None if parsed.output is None else Path(parsed.output).expanduser().resolve()
    if output is not None and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output {parsed.output}: has to be a new or empty folder")
    module, config = recipe_of(folder, parsed.recipe, flags)
    run(lambda: evaluate_run(module, folder, config, parsed.dataset, parsed.split, output), config)


def evaluate_run(
    module: "ModuleType",
    folder: Path,
    config: "RecipeConfig",
    dataset: str | None,
    split: str = "train",
    output: Path | None = None,
) -> Mapping[str, Any]:
    """Evaluate the run in `folder`, made by a recipe's module, on a dataset; None: on what it held out.

    `config` are its flags, or others where rows are to be read otherwise. In `output`, a new folder, evaluation.json
    is written, and what a run writes of each held-out example. A collective.

    Raises:
        UserError: if the run is not through, or the data cannot be used: a row without text, or with a label that
            the model does not know, say.
    """
    from rich.console import Console

    from hf_accum.cli.handed_over import handed_over
    from hf_accum.distributed.collectives import on_rank_0
    from hf_accum.distributed.launch import end_accelerator
    from hf_accum.files import json_safe, write_json
    from hf_accum.run.evaluation import Evaluation
    from hf_accum.run.finished import Restored, check_through, finished_run
    from hf_accum.run.shown_figures import in_a_line, lines_of, show_classes
    from hf_accum.tuner.run_capacity import cutter_of, find_run_capacity
    from hf_accum.tuner.workload import workload_of

    check_through(folder)
    with ExitStack() as stack:
        place = output or Path(stack.enter_context(TemporaryDirectory())) / "evaluation"
        config = replace(_as_trained(config, dataset, split), output_dir=str(place))
        handed = handed_over(module, config)
        started, draw = handed.run, handed.draw
        data = handed.data if dataset is None else _held_out_whole(handed.data)
        stack.callback(end_accelerator, started.accelerator)
        on_rank_0(started.ranks, lambda: place.mkdir(parents=True, exist_ok=True))
        stack.callback(started.claim.release)
        of_run = finished_run(folder, handed.config, lambda _: Restored(handed.task, handed.spec, handed.processor))
        task, device = of_run.task, started.device
        model = of_run.load(device, started.precision)
        workload = workload_of(model, task, handed.config, started.precision)
        tunings = find_run_capacity(
            handed.config, workload, started.ranks, device, checkpoint=lambda: None, advise=lambda budget: ()
        )
        cutter = cutter_of(tunings[started.ranks.index], device)
        figures = Evaluation(started, handed.config, data, task, draw).figures(model, cutter, place)
        if started.ranks.index == 0:
            console = Console(soft_wrap=True)
            of = "what the run held out" if dataset is None else dataset
            console.print(f"{folder.name} on {of}: {in_a_line(figures)}", markup=False, highlight=False)
            show_classes(console, figures)
            for reason, number in data.bad_rows.items():
                console.print(f"left out: {number:,} bad rows ({reason})", markup=False, highlight=False)
            for line in lines_of(figures):
                if output is not None or "predictions.jsonl" not in line:
                    console.print(line, markup=False, highlight=False)
            if output is not None:
                write_json(output / "evaluation.json", json_safe(dict(figures)))
                console.print(f"written: {output}", markup=False, highlight=False)
    return figures


def _held_out_whole(data: Any) -> Any:
    """All rows to evaluate on: none was trained on, however they were split when they were read."""
    return replace(data, eval_fraction=None, eval_source=data.source)


def _as_trained(config: "RecipeConfig", dataset: str | None, split: str) -> "RecipeConfig":
    """The flags with all rows of the dataset to evaluate on, and nothing that only a training has."""
    changes: dict[str, Any] = {"trackers": [], "resume": "never", "preview": False, "num_seeds": 1}
    if dataset is not None:
        changes |= {"dataset": dataset, "train_split": split, "eval_split": None}
        weights = {"class_weights": "none", "positive_weights": [], "tune_thresholds": False}
        weights |= {"temperature_scaling": False}
        changes |= {name: value for name, value in weights.items() if hasattr(config, name)}
    return replace(config, **changes)
