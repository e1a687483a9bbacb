"""Several runs of one command that differ in their seed: one after the other, and their figures together."""

import gc
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hf_accum.config.flags import as_flags, flag_names
from hf_accum.config.recipe import RecipeConfig
from hf_accum.config.serialization import as_dict, flattened, write_config
from hf_accum.device.out_of_memory import empty_cache
from hf_accum.distributed.collectives import on_rank_0
from hf_accum.distributed.launch import end_accelerator, keeping_processes, start_accelerator
from hf_accum.distributed.ranks import Ranks, ranks_of
from hf_accum.errors import Stopped, UserError
from hf_accum.files import check_output_dir, is_leftover, write_json
from hf_accum.run.folder import OF_A_RUN, move_aside, refuse_others
from hf_accum.run.resume import FREE
from hf_accum.run.shown_figures import show_table

C = TypeVar("C", bound=RecipeConfig)

SUMMARY = "seeds.json"
_OF_ONE_RUN = OF_A_RUN - {"config.yaml"}
_OF_THE_RESULT = {"eval_every", "best_metric", "early_stopping_patience", "extra_metrics", "on_bad_row"}
_SAME_RESULT = FREE - _OF_THE_RESULT
"""Settings by which the figures of a finished run would not be others."""
_LEAST_MINUTES = 1e-3


def train_seeds(train: Callable[[C], object], config: C) -> dict[str, Any]:
    """Train with each seed from the config's on, each in a folder of its own, `seed-0`, ... in `output_dir`.

    Each is a run as if it had been started alone: it goes on where it was stopped, and is not trained again if the
    command is repeated after it has finished. Runs of other settings in the folder are moved aside, with it. Returns
    what `seeds.json` holds, see `summary_of`.

    Raises:
        UserError: if `output_dir` is something else than a folder for such runs.
        Stopped: if one of them was told to stop.
    """
    deadline = None if config.max_minutes is None else time.monotonic() + 60 * config.max_minutes
    accelerator = start_accelerator(timeout_minutes=config.rank_timeout_minutes)
    ranks = ranks_of(accelerator, config.rank_timeout_minutes)
    folder = Path(config.output_dir).expanduser().resolve()
    say = _sayer(ranks)
    earlier = on_rank_0(ranks, lambda: _start(folder, config))
    if earlier is not None:
        say(f"an earlier run is kept in {earlier}")
    seeds = range(config.seed, config.seed + config.num_seeds)
    figures: list[dict[str, float | None]] = []
    try:
        with keeping_processes():
            for number, seed in enumerate(seeds):
                one = replace(config, seed=seed, num_seeds=1, output_dir=str(folder / f"seed-{number}"))
                place = f"seed {seed}, {number + 1} of {config.num_seeds}: {one.output_dir}"
                found = on_rank_0(ranks, lambda one=one: _figures_in(Path(one.output_dir)))
                if found is None:
                    say(place)
                    if deadline is not None:  # all of them together have as long as was said
                        left = (deadline - time.monotonic()) / 60
                        one = replace(one, max_minutes=max(left, _LEAST_MINUTES))
                    train(one)
                    found = on_rank_0(ranks, lambda one=one: _figures_in(Path(one.output_dir)))
                    assert found is not None  # a run that is through
                    gc.collect()  # the run's model, optimizer and graphs: the next one measures what is free
                    empty_cache(accelerator.device)
                else:
                    say(f"{place}: has finished before, its figures are taken; `resume never` trains it again")
                figures.append(found)
    except Stopped:
        end_accelerator(accelerator)
        raise
    except Exception:
        say(f"ended by an error: seed {seeds[len(figures)]} ({folder / f'seed-{len(figures)}'})", file=sys.stderr)
        raise
    summary = summary_of(seeds, figures)
    on_rank_0(ranks, lambda: write_json(folder / SUMMARY, summary))
    if ranks.index == 0:
        _show(summary, folder)
    end_accelerator(accelerator)
    return summary


def summary_of(seeds: Sequence[int], figures: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    """The seeds, and of each figure its values in their order, their mean and their standard deviation.

    The deviation is that of a sample (n - 1). A figure that a run does not have is null there, and the mean and the
    deviation are of the others: null where there are none, or for the deviation only one.
    """
    together: dict[str, Any] = {}
    for name in dict.fromkeys(name for found in figures for name in found):
        values = [found.get(name) for found in figures]
        numbers = [value for value in values if value is not None]
        together[name] = {
            "mean": statistics.fmean(numbers) if numbers else None,
            "std": statistics.stdev(numbers) if len(numbers) > 1 else None,
            "values": values,
        }
    return {"seeds": list(seeds), "figures": together}


def _figures_in(folder: Path) -> dict[str, float | None] | None:
    """The numbers of evaluation.json, nested ones by their path: `per_class.eye.f1`; None: that run is not through.

    Null stands for no number.
    """
    if not (folder / "evaluation.json").is_file():
        return None
    values = flattened(json.loads((folder / "evaluation.json").read_text(encoding="utf-8")))
    values.pop("step", None)
    return {name: value for name, value in values.items() if value is None or _is_number(value)}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _start(folder: Path, config: RecipeConfig) -> Path | None:
    """Make the folder of the runs; a single run's in its place, or one of other settings, is moved aside.

    Returns to where.
    """
    try:
        check_output_dir(folder)
        there = {path.name for path in folder.iterdir() if not is_leftover(path)} if folder.is_dir() else set[str]()
        refuse_others(folder, there)
        goes_on = not there & _OF_ONE_RUN and config.resume == "auto" and _is_of_same_settings(folder, config)
        earlier = move_aside(folder) if there and not goes_on else None
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SUMMARY).unlink(missing_ok=True)  # of another number of seeds
        write_config(config, folder)
    except OSError as error:
        raise UserError(f"`output_dir` {folder}: has to be a folder to write in ({error})") from error
    return earlier


def _is_of_same_settings(folder: Path, config: RecipeConfig) -> bool:
    """Whether the runs in it would have the same figures, but for what `allow_changes` names."""
    try:
        earlier = flattened(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        return False
    now = flattened(json.loads(json.dumps(as_dict(config))))
    free = _SAME_RESULT | set(config.allow_changes)
    return all(earlier.get(name) == value for name, value in now.items() if name not in free)


def _sayer(ranks: Ranks) -> Callable[..., None]:
    def say(text: str, file: Any = None) -> None:
        if ranks.index == 0:
            print(as_flags(text, flag_names()), file=file, flush=True)

    return say


def _show(summary: Mapping[str, Any], folder: Path) -> None:
    """The figures that are not of a single class; all are in the file."""
    seeds = summary["seeds"]
    table = Table("figure", "mean", "std", *(f"seed {seed}" for seed in seeds), title_justify="left")
    table.title = f"{len(seeds)} seeds"
    for name, of_figure in summary["figures"].items():
        if "." not in name:
            cells = [of_figure["mean"], of_figure["std"], *of_figure["values"]]
            table.add_row(Text(name), *("-" if value is None else f"{value:.4g}" for value in cells))
    console = Console(soft_wrap=True)
    show_table(console, table)
    console.print(f"all figures: {folder / SUMMARY}", highlight=False, markup=False, emoji=False)
