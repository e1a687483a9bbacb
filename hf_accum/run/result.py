"""The result of a run: the folder of its weights, and whether the run is through."""

from pathlib import Path

from hf_accum.errors import UserError

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
        raise UserError(f"{run}: there is no such folder; has to be the folder of a run")
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run}: has to be the folder of a run (it has no config.yaml)")


def check_through(run: Path) -> Path:
    """The result of a run that is through.

    Raises:
        UserError: if the folder is not that of a run, or the run is not through.
    """
    check_run(run)
    result = result_of(run)
    if result is None or not (run / "evaluation.json").is_file():
        raise UserError(
            f"{run}: the run is not through (it has no {'result' if result is None else 'evaluation.json'} yet): has "
            "to be a run that is through; the command that began it goes on with it"
        )
    return result
