"""The optimizer: which one, and the learning rate of each part of the model."""

from collections import defaultdict
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from hf_accum.config.optimization import OptimizationFlags
from hf_accum.errors import UserError
from hf_accum.models.parts import Parts

_OFFLOADED_FROM = 100_000  # weights: smaller ones bitsandbytes does not page out


def build_optimizer(model: nn.Module, flags: OptimizationFlags) -> Optimizer:
    """The optimizer over the parameters that are trained; biases and norms (one dimension or none) do not decay.

    - `adamw`: torch's, fused: its step needs no memory beside the state, 8 bytes for each weight.
    - `adamw_8bit`: bitsandbytes' with both moments in 8 bits, a float32 scale for each 256 (Dettmers et al., 8-bit
      Optimizers via Block-wise Quantization, 2021): 2 bytes for each weight. Small ones stay in float32.
    - `paged_adamw_8bit`: the same, in memory that the driver moves to the host where the device needs it.

    Raises:
        UserError: if bitsandbytes is not installed; if the model has no part that a learning rate is given for.
    """
    rates = learning_rates(model, flags)
    groups: dict[tuple[float, bool], list[Tensor]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[rates[name], parameter.ndim >= 2].append(parameter)
    # Weights that decay first, the highest rate first.
    ordered = sorted(groups.items(), key=lambda group: (not group[0][1], -group[0][0]))
    parameters: list[dict[str, Any]] = [
        {"params": members, "lr": rate, "weight_decay": flags.weight_decay if decays else 0.0}
        for (rate, decays), members in ordered
    ]
    if flags.optimizer == "adamw":
        return AdamW(parameters, lr=flags.peak_learning_rate, fused=True)
    if find_spec("bitsandbytes") is None:
        raise UserError(f"`optimizer` {flags.optimizer}: needs bitsandbytes: pip install bitsandbytes")
    from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit

    kind: Any = AdamW8bit if flags.optimizer == "adamw_8bit" else PagedAdamW8bit
    return kind(parameters, lr=flags.peak_learning_rate)


def make_state(optimizer: Optimizer) -> None:
    """Have the state of an optimizer that `build_optimizer` made there before its first step, as that would make it.

    So a device has it in one piece, before the gradients and activations of a first window lie around it.
    """
    for number, group in enumerate(optimizer.param_groups):
        for index, parameter in enumerate(group["params"]):
            if optimizer.state[parameter]:
                continue
            if isinstance(optimizer, AdamW):
                optimizer.state[parameter] = {
                    "step": torch.zeros((), device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
            else:
                of_bitsandbytes: Any = optimizer
                of_bitsandbytes.init_state(group, parameter, number, index)


def check_optimizer(name: str, device: torch.device) -> None:
    """Refuse an optimizer that a device cannot have.

    Raises:
        UserError: naming it, and what to take instead.
    """
    if name == "paged_adamw_8bit" and device.type != "cuda":
        raise UserError(
            f"`optimizer` {name}: needs a CUDA device, whose driver moves its state to the host, and this run is on "
            f"{device.type}; `optimizer adamw_8bit` keeps as little"
        )


def learning_rates(model: nn.Module, flags: OptimizationFlags) -> dict[str, float]:
    """The learning rate of each parameter that is trained, by its name.

    `learning_rate_head` is that of the head. With `layerwise_lr_decay` each layer has the rate of the one above it
    times this number, the top layer `learning_rate`, the embeddings that of a layer below the first (Sun et al., How
    to Fine-Tune BERT for Text Classification, 2019, section 5.3.3; a head counts as the top layer).

    Raises:
        UserError: if the model has no such part.
    """
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if flags.learning_rate_head is None and flags.layerwise_lr_decay is None:
        return dict.fromkeys(trained, flags.peak_learning_rate)
    parts = Parts.of(model)
    if flags.learning_rate_head is not None and not any(map(parts.is_head, trained)):
        raise UserError(
            f"`learning_rate_head` {flags.learning_rate_head}: has to be left out: no head of this model is trained"
        )
    if flags.layerwise_lr_decay is not None and parts.num_layers == 0:
        raise UserError(
            f"`layerwise_lr_decay` {flags.layerwise_lr_decay}: has to be left out: this model has no list of layers"
        )
    decay = 1.0 if flags.layerwise_lr_decay is None else flags.layerwise_lr_decay
    rates = {}
    for name in trained:
        if parts.is_head(name) and flags.learning_rate_head is not None:
            rates[name] = flags.learning_rate_head
        else:
            rates[name] = flags.peak_learning_rate * decay ** parts.layers_above(name)
    return rates


def paged_state(optimizer: Optimizer) -> list[Tensor]:
    """Tensors of an optimizer's state that the driver may keep on the host."""
    if not getattr(optimizer, "is_paged", False):
        return []
    states = [state[name] for state in optimizer.state.values() for name in ("state1", "state2") if name in state]
    return [tensor for tensor in states if tensor.numel() >= _OFFLOADED_FROM]
