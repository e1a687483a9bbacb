"""A run's folder: made, or gone on in; earlier runs kept."""

import errno
import json
import os
import sys
import time
from pathlib import Path

from hf_accum.config.recipe import RecipeConfig
from hf_accum.config.serialization import write_config
from hf_accum.distributed.collectives import on_all_ranks
from hf_accum.distributed.ranks import Ranks
from hf_accum.errors import UserError
from hf_accum.files import check_output_dir, is_leftover, write_atomically
from hf_accum.run.checkpoint import Loaded, remove_half_written, set_aside
from hf_accum.run.log import TRACKERS_PROJECT

_OF_A_RUN = {
    *("config.yaml", "tuning.json", "metrics.jsonl", "evaluation.json", "checkpoints", "adapter", "model"),
    *("nonfinite.jsonl", "samples.jsonl", TRACKERS_PROJECT),
}


_PATIENCE_SECONDS = 10.0  # with a run that is about to end
_claimed: dict[tuple[int, int], int] = {}  # by device and inode; one process runs one training at a time


class FolderClaim:
    """A run's folder for this process alone, as long as this object lives; where it is not there yet, once it is.

    Two runs that write into one folder would spoil each other's results: say, a run that was taken for dead, and the
    one that goes on in its place.
    """

    def __init__(self) -> None:
        self._mine: list[tuple[int, int]] = []

    def take(self, folder: Path) -> None:
        """Claim the folder, if it is there and this process has not claimed it yet.

        Raises:
            UserError: if another process has it.
        """
        if sys.platform == "win32" or not folder.is_dir():
            return
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
        status = os.fstat(descriptor)
        key = (status.st_dev, status.st_ino)
        if key in _claimed:
            os.close(descriptor)
            return
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                is_taken = error.errno == errno.EWOULDBLOCK
                if is_taken and time.monotonic() < deadline:
                    time.sleep(0.1)
                    continue
                os.close(descriptor)
                if not is_taken:
                    return  # a file system without locks
                raise UserError(
                    f"`output_dir` {folder}: another run is at work in it; wait until it has ended, end it, or give "
                    "another folder"
                ) from None
        _claimed[key] = descriptor
        self._mine.append(key)

    def __del__(self) -> None:
        """Let it go."""
        while self._mine:
            os.close(_claimed.pop(self._mine.pop()))


def claim_folder(folder: Path, ranks: Ranks) -> FolderClaim:
    """Look whether a run can have this folder; rank 0 claims it. A collective.

    Raises:
        UserError: if it cannot be written to, is something else, or another run is at work in it.
    """
    claim = FolderClaim()

    def look() -> None:
        if ranks.index == 0:
            check_output_dir(folder)
            claim.take(folder)

    on_all_ranks(ranks, look)
    return claim


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
        if there and not goes_on:
            if others := sorted(there - _OF_A_RUN):
                raise UserError(
                    f"`output_dir` {folder}: has to be new, empty, or an earlier run's folder; it holds "
                    f"{', '.join(others)}"
                )
            number = 1
            while (earlier := folder.with_name(f"{folder.name}-earlier-{number}")).exists():
                number += 1
        try:
            if earlier is not None:
                folder.rename(earlier)
            folder.mkdir(parents=True, exist_ok=True)
            if claim is not None:
                claim.take(folder)
            remove_half_written(folder)
            if resumed is not None and goes_on:
                set_aside(folder, resumed.step)
                (folder / "evaluation.json").unlink(missing_ok=True)  # of a run that was through
                for name in ("metrics.jsonl", "nonfinite.jsonl"):
                    _keep_lines(folder / name, resumed.step)
            write_config(config, folder)
        except OSError as error:
            raise UserError(f"`output_dir` {folder}: has to be a folder to write in ({error})") from error
        return earlier

    return on_all_ranks(ranks, lambda: start() if ranks.index == 0 else None)[0]


def _keep_lines(file: Path, last_step: int) -> None:
    """Of a file of JSON lines those up to a step, and none that was not written to its end."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= last_step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    write_atomically(file, "".join(kept))
