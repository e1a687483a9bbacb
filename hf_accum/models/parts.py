"""The parts of a model: its embeddings, its layers, what stands above them, and its head."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from hf_accum.errors import UserError
from hf_accum.models.quantization import head_modules


@dataclass(frozen=True)
class Parts:
    """Where each parameter of a model stands, by its name."""

    num_layers: int
    layers: str
    """The name of the list of layers, with a dot at its end."""
    below: frozenset[str]
    """Parameters that stand before the first layer: embeddings, patches."""
    heads: tuple[str, ...]
    """The modules of the head, with a dot at their ends."""

    @classmethod
    def of(cls, model: nn.Module) -> "Parts":
        """The parts of a model, with adapters or without. Its layers are the longest list of modules of one kind."""
        lists = [
            (len(module), name)
            for name, module in model.named_modules()
            if isinstance(module, nn.ModuleList) and len({type(layer) for layer in module}) == 1
        ]
        num_layers, name = max(lists, key=lambda found: found[0], default=(0, ""))
        if num_layers < 2:
            num_layers, name = 0, ""
        layers = f"{name}." if num_layers else ""
        names = [parameter for parameter, _ in model.named_parameters()]
        first = next((at for at, parameter in enumerate(names) if layers and parameter.startswith(layers)), 0)
        get_base = getattr(model, "get_base_model", None)
        prefix = "base_model.model." if get_base is not None else ""
        base: Any = model if get_base is None else get_base()
        heads = head_modules(base) if hasattr(base, "base_model") else []
        return cls(num_layers, layers, frozenset(names[:first]), tuple(f"{prefix}{head}." for head in heads))

    def is_head(self, name: str) -> bool:
        """Whether a parameter is of the head, or of another module that was new and is trained whole."""
        return name.startswith(self.heads) or ".modules_to_save." in name

    def layers_above(self, name: str) -> int:
        """How many layers stand above that of a parameter; of the embeddings all of them."""
        if self.is_head(name):
            return 0
        if name in self.below:
            return self.num_layers
        if self.num_layers and name.startswith(self.layers):
            return self.num_layers - 1 - int(name[len(self.layers) :].partition(".")[0])
        return 0


def freeze_embeddings(model: nn.Module) -> None:
    """Do not train what stands below the first layer: embeddings, their norm; an output layer that is tied to them.

    Raises:
        UserError: if the model has no list of layers.
    """
    parts = Parts.of(model)
    if parts.num_layers == 0:
        raise UserError(
            "`freeze_embeddings` true: has to be false: this model has no list of layers above embeddings"
        )
    for name, parameter in model.named_parameters():
        if name in parts.below:
            parameter.requires_grad_(False)
