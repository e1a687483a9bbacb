"""What the tuner found in earlier runs, in a file for each workload and device."""

import hashlib
import json
import math
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_accum.accumulation.capacity import Capacity, Peak
from hf_accum.accumulation.time_model import Costs
from hf_accum.device.accelerator import memory_info
from hf_accum.device.memory import DeviceMemory, device_name
from hf_accum.files import write_json
from hf_accum.models.offload import offload_of
from hf_accum.tuner.prediction import Prediction
from hf_accum.tuner.tracing import FixedBytes
from hf_accum.tuner.tuning import Tuning
from hf_accum.tuner.workload import Workload

_FORMAT = 4
_OF_NO_BYTES = frozenset({"lr", "betas", "eps", "weight_decay", "momentum_decay", "alpha"})


def cache_path(
    workload: Workload,
    memory: DeviceMemory,
    device: torch.device,
    num_ranks: int,
    max_probe_seconds: float | None = None,
) -> Path:
    """Where the result for a workload on such a device is kept: everything that it depends on is in the name."""
    from huggingface_hub.constants import HF_HOME

    depends_on = [memory.name, max_probe_seconds, _key(workload, device, num_ranks)]
    key = json.dumps(depends_on, sort_keys=True, default=str)
    return Path(HF_HOME) / "hf_accum" / "tuning" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def _key(workload: Workload, device: torch.device, num_ranks: int) -> dict[str, Any]:
    model = workload.model
    optimizer = workload.optimizer(model) if workload.trains else None
    config = getattr(model, "config", None)
    layout = [(name, list(t.shape), str(t.dtype), t.requires_grad) for name, t in model.named_parameters()]
    layout += [(name, list(t.shape), str(t.dtype), False) for name, t in model.named_buffers()]
    checkpointed = [
        name for name, module in model.named_modules() if getattr(module, "gradient_checkpointing", False)
    ]
    dropouts = [module.p for module in model.modules() if isinstance(module, nn.modules.dropout._DropoutNd)]
    defaults = {} if optimizer is None else optimizer.defaults
    settings = {name: value for name, value in defaults.items() if name not in _OF_NO_BYTES}
    if device.type == "cpu":
        place: tuple[Any, ...] = ("cpu", torch.get_num_threads())
    else:
        _, total = memory_info(device)
        place = (device.type, device_name(device), total)
    return {
        "format": _FORMAT,
        "model": type(model).__qualname__,
        "config": config.to_dict() if config is not None else None,
        "attention": getattr(config, "_attn_implementation", None),
        "layout": layout,
        "modules": [type(module).__qualname__ for module in model.modules()],
        "checkpointed": checkpointed,
        "offloaded": offload_of(model) is not None,
        "dropouts": dropouts,
        "optimizer": (type(optimizer).__qualname__, settings),
        "max_length": workload.max_length,
        "precision": workload.precision,
        "strategy": "one rank" if num_ranks == 1 else "data parallel",
        "device": place,
        "versions": [version(name) for name in ("torch", "transformers", "peft", "accelerate", "hf-accum")],
    }


def read(path: Path) -> Tuning | None:
    """None if there is nothing there that can be used: then it is found anew, and written."""
    try:
        value = json.loads(path.read_text())
        prediction = value["prediction"]
        return Tuning(
            capacity=Capacity(1),
            device=str(value["device"]),
            limit_bytes=int(value["limit_bytes"]),
            max_length=int(value["max_length"]),
            probes=(),
            slope=_finite(value["slope"], above=0.0),
            offset_bytes=_finite(value["offset_bytes"]),
            seconds=0.0,
            costs=Costs.from_json(value["costs"]),
            settled=bool(value["costs_are_settled"]),
            enough=None if value["enough"] is None else max(1, int(value["enough"])),
            frontier=None if value["frontier"] is None else min(1.0, _finite(value["frontier"], above=0.0)),
            prediction=Prediction(
                **{name: Peak.from_json(prediction[name]) for name in ("training", "evaluation", "activations")},
                fixed=FixedBytes(**{name: _at_least_0(bytes_) for name, bytes_ in prediction["fixed"].items()}),
                state_shapes=[_shape(shape, name) for shape, name in prediction["state_shapes"]],
                is_traced=bool(prediction["is_traced"]),
            ),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None


def _finite(value: Any, above: float = -math.inf) -> float:
    number = float(value)
    if not (math.isfinite(number) and number > above):
        raise ValueError(f"{value}: has to be finite, and above {above}")
    return number


def _at_least_0(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{value}: has to be a whole number, at least 0")
    return value


def _shape(shape: Any, name: str) -> tuple[torch.Size, torch.dtype]:
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name}: has to be a dtype")
    return torch.Size(map(_at_least_0, shape)), dtype


def write(path: Path, tuning: Tuning) -> None:
    """Keep a result that was traced, for `read`."""
    prediction = tuning.prediction
    assert prediction is not None
    value = {
        "device": tuning.device,
        "limit_bytes": tuning.limit_bytes,
        "max_length": tuning.max_length,
        "slope": tuning.slope,
        "offset_bytes": tuning.offset_bytes,
        "costs": tuning.costs.as_json(),
        "costs_are_settled": tuning.settled,
        "frontier": tuning.frontier,
        "enough": tuning.enough,
        "prediction": {
            "training": asdict(prediction.training),
            "evaluation": asdict(prediction.evaluation),
            "activations": asdict(prediction.activations),
            "fixed": asdict(prediction.fixed),
            "is_traced": prediction.is_traced,
            "state_shapes": [
                (list(shape), str(dtype).rpartition(".")[2]) for shape, dtype in prediction.state_shapes
            ],
        },
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, value)
    except OSError:
        pass  # a cache that cannot be written costs the next run a few seconds
