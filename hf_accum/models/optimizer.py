"""The optimizer, and how many steps it will take."""

from torch import nn
from torch.optim import AdamW, Optimizer


def build_optimizer(model: nn.Module, learning_rate: float, weight_decay: float) -> Optimizer:
    """AdamW over the trainable parameters; biases and norms (one dimension or none) do not decay.

    Fused: faster, and its step needs no memory beside the state.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW([group for group in groups if group["params"]], lr=learning_rate, fused=True)


def count_steps(
    num_examples: int | None, effective_batch_size: int, num_epochs: int | None, max_steps: int | None
) -> int:
    """Optimizer steps of a run: by passes over the data or by a number, whichever ends first.

    A pass ends with a short window if the examples do not divide evenly. `num_examples` may be None (not
    known) if there is a `max_steps`.
    """
    limits = [] if max_steps is None else [max_steps]
    if num_epochs is not None and num_examples is not None:
        limits.append(num_epochs * -(-num_examples // effective_batch_size))
    return min(limits)
