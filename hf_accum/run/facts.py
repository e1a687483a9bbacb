"""run.json: what a run was, for those who look at its folder afterwards."""

import importlib.metadata
import platform
import sys
from pathlib import Path

from torch import nn

from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.split import SplitData
from hf_accum.device.memory import device_name
from hf_accum.files import write_json
from hf_accum.models.base import name_of_base
from hf_accum.models.lora import count_parameters
from hf_accum.run.result import FACTS
from hf_accum.run.start import StartedRun

_PACKAGES = ("hf-accum", "torch", "transformers", "peft", "accelerate", "datasets", "bitsandbytes")


def write_facts(run: StartedRun, config: RecipeConfig, data: SplitData, model: nn.Module, num_steps: int) -> None:
    """Write it into the run's folder, on rank 0."""
    if run.ranks.index:
        return
    num_trained, num_parameters = count_parameters(model)
    facts = {
        "recipe": recipe_name(config),
        "model": config.model,
        "own_model": None if config.model is not None else name_of_base(model),
        "dataset": data.dataset,
        "num_train": data.num_train,
        "num_held_out": data.num_held_out,
        "num_calibration": data.num_calibration,
        "num_trained_parameters": num_trained,
        "num_parameters": num_parameters,
        "num_ranks": run.ranks.count,
        "device": device_name(run.device),
        "precision": run.precision,
        "num_steps": num_steps,
        "versions": _versions(),
        "notes": list(dict.fromkeys([*run.told, *run.notes, *data.notes_of_files, *data.notes])),
        "data_digest": data.digest,
    }
    write_json(run.folder / FACTS, facts)


def recipe_name(config: RecipeConfig) -> str:
    """The module of a recipe, by its flags' class: also of one that was started by `-m`, or as a file."""
    module = sys.modules[type(config).__module__]
    if module.__name__ != "__main__":
        return module.__name__
    spec = getattr(module, "__spec__", None)
    return spec.name if spec is not None else Path(str(module.__file__)).stem


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
