"""What training has beside the weights: optimizer, schedule, scaler, running statistics; taken, and put back.

Tensors go to safetensors, the rest to JSON, so that loading runs no code of whoever wrote the files. Nothing random
is in it: random numbers are derived from the seed and the step.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hf_accum.errors import UserError

_OPTIMIZER, _BUFFER = "optimizer", "buffer"


class Stateful(Protocol):
    """An optimizer, or a schedule."""

    def state_dict(self) -> dict[str, Any]:
        """Its state."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Take a state."""
        ...


@dataclass(frozen=True)
class TrainingState:
    """Tensors on the CPU, by names; and numbers that JSON can hold."""

    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, Any]


def take_state(model: nn.Module, optimizer: Stateful, scheduler: Stateful, scaler: Stateful | None) -> TrainingState:
    """A copy of the state, which later steps do not change."""
    of_optimizer = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for index, of_parameter in of_optimizer["state"].items():
        for key, value in of_parameter.items():
            if isinstance(value, Tensor):
                tensors[f"{_OPTIMIZER}.{index}.{key}"] = on_cpu(value)
            else:
                values.setdefault(str(index), {})[key] = value
    for name, buffer in _statistics(model).items():
        tensors[f"{_BUFFER}.{name}"] = on_cpu(buffer)
    return TrainingState(
        tensors,
        {
            "optimizer": {"state": values, "param_groups": of_optimizer["param_groups"]},
            "scheduler": scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        },
    )


def put_back(
    state: TrainingState, model: nn.Module, optimizer: Stateful, scheduler: Stateful, scaler: Stateful | None
) -> None:
    """Make the state that of the run.

    Raises:
        UserError: if it is that of another model or optimizer.
    """
    numbers = state.numbers
    of_parameters: dict[int, dict[str, Any]] = {
        int(index): dict(values) for index, values in numbers["optimizer"]["state"].items()
    }
    statistics = _statistics(model)
    for name, tensor in state.tensors.items():
        kind, _, rest = name.partition(".")
        if kind == _OPTIMIZER:
            index, _, key = rest.partition(".")
            of_parameters.setdefault(int(index), {})[key] = tensor
        elif rest not in statistics:
            raise UserError(f"the checkpoint has running statistics {rest!r} that this model has not")
    groups = numbers["optimizer"]["param_groups"]
    _check_groups(groups, of_parameters, optimizer.state_dict()["param_groups"], model)
    # Learning rates and weight decay are those of now: equal, unless they were allowed to change.
    optimizer.load_state_dict({"state": of_parameters, "param_groups": optimizer.state_dict()["param_groups"]})
    _go_on(scheduler, numbers["scheduler"], optimizer)
    if scaler is not None and numbers["scaler"]:
        scaler.load_state_dict(dict(numbers["scaler"]))
    with torch.no_grad():
        for name, buffer in statistics.items():
            buffer.copy_(state.tensors[f"{_BUFFER}.{name}"])


def _go_on(scheduler: Any, numbers: Mapping[str, Any], optimizer: Any) -> None:
    """The schedule (a `LambdaLR`) at the step where it was, from the base rates of now."""
    scheduler.load_state_dict({k: v for k, v in numbers.items() if k not in ("base_lrs", "_last_lr")})
    rates = [
        base * factor(scheduler.last_epoch)
        for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates


def _check_groups(groups: Any, of_parameters: Mapping[int, Any], own: Any, model: nn.Module) -> None:
    if [group["params"] for group in groups] != [group["params"] for group in own]:
        raise UserError("the checkpoint is of another optimizer: its groups of parameters are others")
    trainable = [p for p in model.parameters() if p.requires_grad]
    shapes = sorted(tuple(p.shape) for p in trainable)
    moments = sorted(tuple(state["exp_avg"].shape) for state in of_parameters.values() if "exp_avg" in state)
    if moments and moments != shapes and len(moments) == len(shapes):
        raise UserError("the checkpoint is of another model: the sizes of what is trained are others")


def on_cpu(tensor: Tensor) -> Tensor:
    """A copy."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _statistics(model: nn.Module) -> dict[str, Tensor]:
    """Running statistics, which training changes though they are no parameters."""
    return {
        f"{name}.{key}": buffer
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        for key, buffer in module.named_buffers(recurse=False)
    }
