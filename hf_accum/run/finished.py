"""What a run that is through has learned, loaded again: its weights, its thresholds, its temperature."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_accum.accumulation.splitting import Cutter
from hf_accum.accumulation.time_model import UNLEARNED
from hf_accum.config.recipe import RecipeConfig
from hf_accum.errors import UserError
from hf_accum.evaluation.decisions import Decisions
from hf_accum.models.earlier_weights import labels_in
from hf_accum.models.saving import Processor, load_weights
from hf_accum.models.spec import ModelSpec
from hf_accum.models.trainable import load_trainable
from hf_accum.run.evaluation import CALIBRATION
from hf_accum.tuner.run_capacity import cutter_of, find_run_capacity
from hf_accum.tuner.workload import workload_of


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


def ready(
    result: Path, task: Any, spec: ModelSpec, processor: Processor, config: RecipeConfig, run: Any
) -> tuple[Any, nn.Module]:
    """The task with what was fitted, and the model with its weights; `run` has the `device` and the `precision`.

    Raises:
        UserError: as `load_result` and `calibrated` do.
    """
    _check_labels(result, spec)
    task = calibrated(task, result)
    return task, load_result(result, spec, processor, config, run.device, run.precision)


def cutter_for(task: Any, model: nn.Module, config: RecipeConfig, run: Any, *, writes: bool = False) -> Cutter:
    """How rows are cut to fit, of forwards alone. A collective. `run` has the `ranks` too.

    Where the model `writes`, it keeps what it computed of each token, of which a trace knows nothing: as many rows go
    on at once then as would in training, which needs more; one, where not even one would.

    Raises:
        UserError, OutOfMemory: as `find_run_capacity` does.
    """
    workload = replace(workload_of(model, task, config, run.precision), trains=writes)
    how: dict[str, Any] = {"checkpoint": lambda: None, "advise": lambda budget: (), "or_one": writes}
    tunings = find_run_capacity(config, workload, run.ranks, run.device, **how)
    unlearned = replace(tunings[run.ranks.index], costs=UNLEARNED, settled=False)  # of other forwards, or of steps
    return cutter_of(unlearned, run.device, learns=not config.full_determinism)


def _check_labels(result: Path, spec: ModelSpec) -> None:
    """Refuse flags that call the outputs of a head by other names than it was trained with, or in another order."""
    names: Mapping[int, str] = spec.config_values.get("id2label") or {}
    learned, wanted = labels_in(result), tuple(names.values())
    if learned and wanted and learned != wanted:
        raise UserError(
            f"`labels` {', '.join(wanted)}: have to be those that the run was trained with, in their order: "
            f"{', '.join(learned)}"
        )


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
