"""A run's folder: made, or gone on in; earlier runs kept."""

import atexit
import os
import re
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from hf_accum.config.recipe import RecipeConfig
from hf_accum.config.serialization import write_config
from hf_accum.distributed.collectives import on_rank_0
from hf_accum.distributed.ranks import Ranks
from hf_accum.errors import UserError
from hf_accum.evaluation.records import ERRORS, PREDICTIONS
from hf_accum.files import LOCK, check_output_dir, is_leftover, keep_lines
from hf_accum.run.checkpoint import Loaded, remove_half_written, set_aside
from hf_accum.run.trackers import PROJECT as TRACKERS_PROJECT

OF_A_RUN = {
    *("config.yaml", "run.json", "tuning.json", "metrics.jsonl", "evaluation.json", "checkpoints", "adapter"),
    *("model", "nonfinite.jsonl", "resumes.jsonl", "samples.jsonl", PREDICTIONS, ERRORS, TRACKERS_PROJECT),
    "report.html",
}
"""What a run writes into its folder."""
OF_SEEDS = re.compile(r"seed-\d+(-earlier-\d+)?|seeds\.json|\.seed-\d+\.lock")
"""What several runs, of a seed each, write into theirs beside its config.yaml."""


_PATIENCE_SECONDS = 10.0  # with a run that is about to end


class FolderClaim:
    """A run's folder for this process alone, until it is released; where it is not there yet, once it is. Or a file.

    Two runs that write into one folder would spoil each other's results: say, a run that was taken for dead, and the
    one that goes on in its place. What a killed process has is free at once.
    """

    def __init__(self) -> None:
        self._is_taken = False
        self._let_go: Callable[[], object] | None = None

    def take(self, folder: Path) -> None:
        """Claim the folder, if it is there and not claimed by this yet. One process runs one training at a time.

        Raises:
            UserError: if another process has it.
        """
        if folder.is_dir():
            self._take(
                _lock_file(folder),
                f"`output_dir` {folder}: another run is at work in it; wait until it has ended, end it, or give "
                "another folder",
            )

    def take_file(self, path: Path) -> None:
        """Claim a file that is written, which need not be there yet.

        Raises:
            UserError: if another process has it.
        """
        self._take(
            path.with_name(f".{path.name}{LOCK}"),
            f"`output` {path}: another process is writing it; wait until it has ended, end it, or give another file",
        )

    def _take(self, file: Path, refusal: str) -> None:
        if self._is_taken:
            return
        lock = FileLock(file, thread_local=False, is_singleton=True, fallback_to_soft=False)
        try:
            lock.acquire(timeout=_PATIENCE_SECONDS)
        except Timeout:
            raise UserError(refusal) from None
        except OSError:
            return  # a file system without locks
        self._is_taken = True
        self._let_go = weakref.finalize(self, _let_go, lock)  # of a run that failed, too
        atexit.register(self._let_go)  # before filelock's own, which leaves the file

    def release(self) -> None:
        """Leave the folder to others."""
        if self._let_go is not None:
            self._let_go()


def _lock_file(folder: Path) -> Path:
    """Beside the folder, which may be moved aside; in it, where it cannot be: what is mounted, say."""
    if os.access(folder.parent, os.W_OK) and not folder.is_mount():
        return folder.with_name(f".{folder.name}{LOCK}")
    return folder / LOCK


def _let_go(lock: BaseFileLock) -> None:
    if lock.lock_counter == 1:  # no other claim of this process has it
        with suppress(OSError):
            Path(lock.lock_file).unlink()  # while it is held: who waits for it looks again
    lock.release()


def claim_folder(folder: Path, ranks: Ranks) -> FolderClaim:
    """Look whether a run can have this folder; rank 0 claims it. A collective.

    Raises:
        UserError: if it cannot be written to, is something else, or another run is at work in it.
    """
    claim = FolderClaim()

    def look() -> None:
        check_output_dir(folder)
        claim.take(folder)

    on_rank_0(ranks, look)
    return claim


def move_aside(folder: Path) -> Path:
    """Give an earlier run's folder another name, which is returned: the first of NAME-earlier-1, ... that is free."""
    number = 1
    while (earlier := folder.with_name(f"{folder.name}-earlier-{number}")).exists():
        number += 1
    return folder.rename(earlier)


def refuse_others(folder: Path, there: Iterable[str]) -> None:
    """Refuse a folder in which something is that no run has written.

    Raises:
        UserError: naming it.
    """
    if others := sorted(name for name in there if name not in OF_A_RUN and not OF_SEEDS.fullmatch(name)):
        raise UserError(
            f"`output_dir` {folder}: has to be new, empty, or an earlier run's folder; it holds {', '.join(others)}"
        )


def start_folder(
    folder: Path,
    config: RecipeConfig,
    ranks: Ranks,
    resumed: Loaded | None = None,
    claim: FolderClaim | None = None,
) -> Path | None:
    """Make a run's folder with its config.yaml; an earlier run there is moved aside, to the path returned.

    Where the run goes on from a checkpoint in it (`resumed`) it stays; what was written of later steps is taken out,
    for they come again. `claim` takes the new one. A collective: rank 0 does it.

    Raises:
        UserError: if the path is something else than a run's folder, or cannot be written to.
    """

    def start() -> Path | None:
        earlier: Path | None = None
        if claim is not None:
            claim.take(folder)  # another run may have made it meanwhile
        check_output_dir(folder)
        goes_on = resumed is not None and resumed.path.is_relative_to(folder)
        there = {path.name for path in folder.iterdir() if not is_leftover(path)} if folder.is_dir() else set()
        is_in_the_way = bool(there) and not goes_on
        if is_in_the_way:
            refuse_others(folder, there)
        try:
            if is_in_the_way:
                earlier = move_aside(folder)
            folder.mkdir(parents=True, exist_ok=True)
            if claim is not None:
                claim.take(folder)
            remove_half_written(folder)
            if resumed is not None and goes_on:
                last = resumed.step
                set_aside(folder, last)
                for name in ("evaluation.json", PREDICTIONS, ERRORS):  # of a run that was through
                    (folder / name).unlink(missing_ok=True)
                for name in ("metrics.jsonl", "nonfinite.jsonl"):
                    keep_lines(folder / name, lambda line: line["step"] <= last)
                keep_lines(folder / "resumes.jsonl", lambda _: True, [{"step": last}])
            write_config(config, folder)
        except OSError as error:
            raise UserError(f"`output_dir` {folder}: has to be a folder to write in ({error})") from error
        return earlier

    return on_rank_0(ranks, start)
