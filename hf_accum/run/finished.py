"""What a run that is through has learned, loaded again: its weights, its thresholds, its temperature."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_accum.config.recipe import RecipeConfig
from hf_accum.errors import UserError
from hf_accum.evaluation.decisions import Decisions
from hf_accum.models.saving import Processor, load_weights
from hf_accum.models.spec import ModelSpec
from hf_accum.models.trainable import load_trainable
from hf_accum.run.evaluation import CALIBRATION


def load_result(
    result: Path,
    spec: ModelSpec,
    processor: Processor,
    config: RecipeConfig,
    device: torch.device,
    precision: str = "no",
) -> nn.Module:
    """The model with the weights in a run's `result`, in eval mode.

    Raises:
        UserError: if the base model does not load, or the weights are damaged or those of another model.
    """
    from safetensors import SafetensorError

    loaded = load_trainable(spec, processor, config, precision=precision, device=device)
    try:
        load_weights(loaded.model, result)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{result}: cannot be loaded ({error}); it has to be the result of a run with this base model"
        ) from error
    return loaded.model.eval()


def calibrated(task: Any, result: Path) -> Any:
    """The task with the thresholds and the temperature that a run has fitted, if it has.

    Raises:
        UserError: if their file cannot be read.
    """
    file = result / CALIBRATION
    if not file.exists():
        return task
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        decisions: Decisions = task.decisions
        return replace(task, fitted=decisions.fitted_of(values))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from error
