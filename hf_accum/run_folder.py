"""A run's folder: made, or gone on in; earlier runs kept."""

import json
from pathlib import Path

from hf_accum.checkpoint import Loaded, remove_half_written, set_aside
from hf_accum.config import RecipeConfig, write_config
from hf_accum.files import write_atomically
from hf_accum.ranks import Ranks, together
from hf_accum.tracking import TRACKERS_PROJECT

_OF_A_RUN = {
    *("config.yaml", "tuning.json", "metrics.jsonl", "evaluation.json", "checkpoints", "adapter", "model"),
    *("nonfinite.jsonl", TRACKERS_PROJECT),
}


def start_folder(folder: Path, config: RecipeConfig, ranks: Ranks, resumed: Loaded | None = None) -> Path | None:
    """Make a run's folder with its config.yaml; an earlier run there is moved aside, to the path returned.

    Where the run goes on from a checkpoint in it (`resumed`) it stays; what was written of later steps is taken out,
    for they come again. A collective: rank 0 does it.

    Raises:
        ValueError: if the path is something else than a run's folder, or cannot be written to.
    """

    def start() -> Path | None:
        earlier: Path | None = None
        goes_on = resumed is not None and resumed.path.is_relative_to(folder)
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--output_dir {folder}: has to be a folder, it is a file")
        if folder.is_dir() and any(folder.iterdir()) and not goes_on:
            others = sorted(
                {path.name for path in folder.iterdir() if not path.name.endswith((".partial", ".old"))} - _OF_A_RUN
            )
            if others or not (folder / "config.yaml").exists():
                raise ValueError(
                    f"--output_dir {folder}: has to be new, empty, or an earlier run's folder; it holds "
                    f"{', '.join(others) or 'no config.yaml'}"
                )
            number = 1
            while (earlier := folder.with_name(f"{folder.name}-earlier-{number}")).exists():
                number += 1
        try:
            if earlier is not None:
                folder.rename(earlier)
            folder.mkdir(parents=True, exist_ok=True)
            if resumed is not None and goes_on:
                remove_half_written(folder)
                set_aside(folder, resumed.step)
                (folder / "evaluation.json").unlink(missing_ok=True)  # of a run that was through
                for name in ("metrics.jsonl", "nonfinite.jsonl"):
                    _keep_lines(folder / name, resumed.step)
            write_config(config, folder)
        except OSError as error:
            raise ValueError(f"--output_dir {folder}: has to be a folder to write in ({error})") from error
        return earlier

    return together(ranks, lambda: start() if ranks.index == 0 else None)[0]


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
