"""The result of a run: the folder of its weights, whether the run is through, and what it said of itself.

It needs no torch, so that a command refuses a wrong folder at once.
"""

import json
from pathlib import Path
from typing import Any

from hf_accum.errors import UserError
from hf_accum.report.which_run import CONFIG, runs_near, seeds_in

FACTS = "run.json"
_FOLDERS = ("adapter", "model")


def result_of(run: Path) -> Path | None:
    """The folder of a run's result; None: there is none yet."""
    return next((run / name for name in _FOLDERS if (run / name).is_dir()), None)


def check_run(run: Path) -> None:
    """Look whether a folder is that of a run.

    Raises:
        UserError: if it is not.
    """
    if not run.is_dir():
        raise UserError(f"{run}: there is no such folder; has to be the folder of a run{runs_near(run)}")
    if not (run / CONFIG).is_file():
        raise UserError(f"{run}: has to be the folder of a run (it has no {CONFIG}){runs_near(run)}")


def check_through(run: Path) -> Path:
    """The result of a run that is through.

    Raises:
        UserError: if the folder is not that of a run, or the run is not through.
    """
    check_run(run)
    result = result_of(run)
    if result is None and (seeds := seeds_in(run)):
        raise UserError(f"{run}: has runs of several seeds in it; give one of these: {' '.join(map(str, seeds))}")
    if result is None or not (run / "evaluation.json").is_file():
        raise UserError(
            f"{run}: the run is not through (it has no {'result' if result is None else 'evaluation.json'} yet): has "
            "to be a run that is through; the command that began it goes on with it"
        )
    return result


def read_facts(folder: Path) -> dict[str, Any]:
    """What stands in a run's folder; nothing of a run of an earlier version.

    Raises:
        UserError: if the file is damaged.
    """
    file = folder / FACTS
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from error
