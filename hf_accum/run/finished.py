"""A run that is through: its flags, its task, and its model, loaded again."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from hf_accum.config.recipe import RecipeConfig
from hf_accum.errors import UserError
from hf_accum.evaluation.decisions import Decisions
from hf_accum.models.saving import Processor, load_weights
from hf_accum.models.spec import ModelSpec
from hf_accum.models.trainable import load_trainable
from hf_accum.run.evaluation import CALIBRATION


class Restored(NamedTuple):
    """What a recipe's `restored(config)` gives of a run that is through, by its flags alone."""

    task: Any
    spec: ModelSpec
    processor: Processor


@dataclass(frozen=True)
class FinishedRun:
    """A run's folder, its flags, and what its recipe makes of them.

    `task` reads and judges as the run's own evaluation did: with the thresholds and the temperature that it fitted.
    """

    folder: Path
    config: RecipeConfig
    weights: Path
    """The folder of the adapter, or of the whole model."""
    task: Any
    spec: ModelSpec
    processor: Processor

    @property
    def is_adapter(self) -> bool:
        """Whether only an adapter (and a head) was trained."""
        return self.weights.name == "adapter"

    def load(self, device: torch.device, precision: str = "no") -> nn.Module:
        """The model with what was trained, in eval mode.

        Raises:
            UserError: if the base model does not load, or the weights are damaged or those of another model.
        """
        from safetensors import SafetensorError

        loaded = load_trainable(self.spec, self.processor, self.config, precision=precision, device=device)
        try:
            load_weights(loaded.model, self.weights)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise UserError(
                f"{self.weights}: cannot be loaded ({error}); it has to be the result of a run with this base model"
            ) from error
        return loaded.model.eval()


def finished_run(folder: Path, config: RecipeConfig, restored: Callable[[Any], Restored]) -> FinishedRun:
    """A run that is through, of its folder, its flags, and its recipe's function `restored`.

    Raises:
        UserError: if it is not through, or its result is not there.
    """
    weights = check_through(folder)
    task, spec, processor = restored(config)
    return FinishedRun(folder, config, weights, _calibrated(task, weights / CALIBRATION), spec, processor)


def check_through(folder: Path) -> Path:
    """The folder of the result of a run that is through.

    Raises:
        UserError: if it is not, or its result is not there.
    """
    weights = [path for name in ("adapter", "model") if (path := folder / name).is_dir()]
    if not (folder / "evaluation.json").exists() or not weights:
        raise UserError(
            f"{folder}: has to be a run that is through (it has no {'result' if not weights else 'evaluation.json'} "
            "yet): the command that began it goes on with it"
        )
    return weights[0]


def _calibrated(task: Any, file: Path) -> Any:
    """The task with the thresholds and the temperature that the run has fitted."""
    if not file.exists():
        return task
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        decisions: Decisions = task.decisions
        return replace(task, fitted=decisions.fitted_of(values))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from error
