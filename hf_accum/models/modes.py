"""Train and eval mode of the modules of a model."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def keeping_modes(model: nn.Module) -> Iterator[None]:
    """Afterwards each module is in train or eval mode as it was.

    Each is told so by its own `train`, too: LeViT keeps what it made of its weights for eval mode until then.
    """
    was = model.training
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        model.train(was)
        for module, mode in modes:
            module.training = mode


@contextmanager
def not_training(model: nn.Module) -> Iterator[None]:
    """The model is in eval mode inside."""
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)
