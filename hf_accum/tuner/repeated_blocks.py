"""Blocks of a model that are alike and follow each other: a trace of a few of them says what all of them need."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

_NUMBERED = {"layer_idx", "layer_index", "layer_id", "block_idx"}  # what only says which block it is


@dataclass(frozen=True)
class RepeatedBlocks:
    """Of the list `name` of the module `parent`: `number` blocks from index `first` on."""

    parent: nn.Module
    name: str
    first: int
    number: int

    @contextmanager
    def shortened(self, number: int) -> Iterator[None]:
        """Meanwhile the model has only so many of them."""
        whole: Any = self.parent._modules[self.name]
        blocks = list(whole)
        kept = [*blocks[: self.first + number], *blocks[self.first + self.number :]]
        self.parent._modules[self.name] = type(whole)(kept)
        try:
            yield
        finally:
            self.parent._modules[self.name] = whole


def find_repeated_blocks(model: nn.Module, at_least: int) -> RepeatedBlocks | None:
    """The longest row of blocks that are alike in a list of the model; None where no row has `at_least` of them.

    Alike are those of the same classes, with the same settings, and with parameters of the same shapes and types
    that train or do not. Where the model's config says that layers differ, none are.
    """
    if _says_that_layers_differ(model):
        return None
    best: RepeatedBlocks | None = None
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) is not nn.ModuleList or len(child) < at_least:
                continue
            first = 0
            looks = [_look(block) for block in child]
            for index in range(1, len(looks) + 1):
                if index < len(looks) and looks[index] == looks[first]:
                    continue
                number = index - first
                if number >= at_least and (best is None or number > best.number):
                    best = RepeatedBlocks(parent, name, first, number)
                first = index
    return best


def _look(block: nn.Module) -> list[object]:
    """What two blocks have in common that compute the same with other numbers."""
    look: list[object] = []
    for name, module in block.named_modules():
        settings = {
            key: value
            for key, value in vars(module).items()
            if key not in _NUMBERED and (value is None or isinstance(value, (bool, int, float, str, tuple)))
        }
        tensors = {
            key: (tuple(tensor.shape), tensor.dtype, tensor.requires_grad)
            for key, tensor in (*module._parameters.items(), *module._buffers.items())
            if tensor is not None
        }
        look.append((name, type(module), settings, tensors))
    return look


def _says_that_layers_differ(model: nn.Module) -> bool:
    """A list in the config with a number or a name for each layer, that are not all the same."""
    config: Any = getattr(model, "config", None)
    number = getattr(config, "num_hidden_layers", None)
    if number is None:
        return False
    lists = [value for value in vars(config).values() if isinstance(value, (list, tuple)) and len(value) == number]
    return any(value != type(value)([value[0]] * number) for value in lists if number > 0)
