"""The optimizer."""

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
