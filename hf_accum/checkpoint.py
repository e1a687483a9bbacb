"""A run's folder: earlier runs kept, weights saved along the way, the best of them."""

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from hf_accum.adapters import load_weights, save_model, weights_folder
from hf_accum.config import RecipeConfig, write_config
from hf_accum.evaluation import LOWER_IS_BETTER
from hf_accum.ranks import Ranks, together
from hf_accum.tracking import TRACKERS_PROJECT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_OF_A_RUN = {"config.yaml", "tuning.json", "metrics.jsonl", "evaluation.json", "checkpoints", "adapter", "model"} | {
    TRACKERS_PROJECT,
    "nonfinite.jsonl",
}


def start_folder(folder: Path, config: RecipeConfig, ranks: Ranks) -> Path | None:
    """Make a run's folder with its config.yaml; an earlier run there is moved aside, to the path returned.

    A collective: rank 0 does it.

    Raises:
        ValueError: if the path is something else than a run's folder, or cannot be written to.
    """

    def start() -> Path | None:
        earlier: Path | None = None
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--output_dir {folder}: has to be a folder, it is a file")
        if folder.is_dir() and any(folder.iterdir()):
            others = sorted({path.name for path in folder.iterdir()} - _OF_A_RUN)
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
            write_config(config, folder)
        except OSError as error:
            raise ValueError(f"--output_dir {folder}: has to be a folder to write in ({error})") from error
        return earlier

    return together(ranks, lambda: start() if ranks.index == 0 else None)[0]


@dataclass
class BestCheckpoint:
    """Which evaluation was the best so far, and for how many it has not been beaten."""

    metric: str | None
    value: float | None = None
    step: int | None = None
    num_evaluations_since: int = field(default=0)

    def update(self, step: int, figures: Mapping[str, Any]) -> bool:
        """Take in an evaluation; True if it is the best so far. Without a metric none is."""
        if self.metric is None:
            return False
        new = figures[self.metric]
        is_better = (
            new is not None
            and not math.isnan(new)
            and (self.value is None or (new < self.value if self.metric in LOWER_IS_BETTER else new > self.value))
        )
        if is_better:
            self.value, self.step, self.num_evaluations_since = new, step, 0
        else:
            self.num_evaluations_since += 1
        return is_better

    def is_beaten_for(self, patience: int | None) -> bool:
        """Whether the last `patience` evaluations brought nothing better; never without a patience."""
        return patience is not None and self.num_evaluations_since >= patience


class Checkpoints:
    """The weights saved in a run, as `checkpoints/step-00000100/adapter` (or `model`), by rank 0."""

    def __init__(
        self, folder: Path, model: nn.Module, tokenizer: "PreTrainedTokenizerBase", *, is_main: bool
    ) -> None:
        self.folder = folder
        self.model = model
        self.tokenizer = tokenizer
        self.is_main = is_main
        self._best: Path | None = None

    def save(self, step: int) -> None:
        """Save the weights as they are after this step."""
        path = self._path(step)
        if self.is_main and not path.exists():
            save_model(self.model, self.tokenizer, path / weights_folder(self.model))
        if self._best == path:
            self._best = None  # it is kept for itself now

    def save_best(self, step: int) -> None:
        """Save the weights as the best so far, in place of the ones that were."""
        path = self._path(step)
        if path == self._best:
            return
        is_saved = path.exists()  # for itself: it is then kept when it is no longer the best
        if self.is_main:
            if not is_saved:
                save_model(self.model, self.tokenizer, path / weights_folder(self.model))
            if self._best is not None:
                shutil.rmtree(self._best)
        self._best = None if is_saved else path

    def load(self, step: int) -> None:
        """Put the weights saved after a step back into the model, on this rank."""
        load_weights(self.model, self._path(step) / weights_folder(self.model))

    def export(self) -> Path:
        """Save the weights as the run's result."""
        path = self.folder / weights_folder(self.model)
        if self.is_main:
            save_model(self.model, self.tokenizer, path)
        return path

    def _path(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"step-{step:08}"
