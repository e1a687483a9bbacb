"""The dropouts of a model, and whatever else of it is random in training."""

import re
from typing import Any

from torch import nn

from hf_accum.errors import UserError

_DROPOUTS = re.compile(r"dropout|pdrop$|drop_rate$|^drop_(mlp|conv_encoder)_rate$")
_OTHERS = re.compile(
    r"layer_?drop|drop_?path|stochastic_depth|drop_connect"  # leave out layers, or branches of them
    r"|jitter|pos_embed_(shift|rescale)$"  # of routers to experts, and of places in an image
    r"|mask_(time|feature)_prob$|^apply_spec_augment$"  # hide parts of a recording
    r"|^(label_noise_ratio|box_noise_scale)$"  # of what a detector is told to find again
)
_NONE_IS_OFF = re.compile(r"^pos_embed_(shift|jitter|rescale)$")
"""Numbers that are factors, or their logarithms: there is no number without effect but None."""


def set_dropout(model: nn.Module, probability: float) -> None:
    """Set every dropout layer of a model, adapters included, to one probability."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = probability


def set_config_dropout(config: Any, probability: float) -> None:
    """Set every dropout probability of a transformers config, and of the configs in it, before a model is made of it.

    With the probability 0 all that is random in training is turned off: layers that are left out, noise of routers,
    jittered positions, masks of spectra. Each field keeps its type: a list of numbers is one of as many.

    Raises:
        UserError: for a probability above 0 where the config takes nothing but whole numbers.
    """
    from huggingface_hub.errors import StrictDataclassFieldValidationError
    from transformers import PreTrainedConfig

    for name, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            set_config_dropout(value, probability)
        elif _OTHERS.search(name):
            if probability == 0:
                setattr(config, name, None if _NONE_IS_OFF.match(name) else _filled(value, 0.0))
        elif _DROPOUTS.search(name) and not isinstance(value, bool):  # one that is true or false is no probability
            try:
                setattr(config, name, _filled(value, probability))
            except StrictDataclassFieldValidationError as error:
                raise UserError(
                    f"`dropout` {probability}: has to be left out, or 0: `{name}` of {type(config).__name__} takes "
                    "whole numbers only"
                ) from error


def random_fields(config: Any) -> list[str]:
    """The fields of a transformers config, and of the configs in it, by which a model is random in training, as
    name=value, each once. Of anything else, or None: none.
    """
    from transformers import PreTrainedConfig

    found: list[str] = []
    for name, value in vars(config).items() if isinstance(config, PreTrainedConfig) else ():
        if isinstance(value, PreTrainedConfig):
            found += random_fields(value)
        elif _DROPOUTS.search(name) or _OTHERS.search(name):
            is_switch = isinstance(value, bool) and not _OTHERS.search(name)
            if not is_switch and any(value if isinstance(value, list | tuple) else [value]):
                found.append(f"{name}={value}")
    return list(dict.fromkeys(found))


def _filled(value: Any, number: float) -> Any:
    """A number in the place of one, or of each of a list; a switch is off. What is left out (None, as of a head that
    takes the model's dropout) or is something else stays.
    """
    if isinstance(value, list | tuple):
        return type(value)(_filled(item, number) for item in value)
    if isinstance(value, bool):
        return False
    if not isinstance(value, int | float):
        return value
    return type(value)(number) if number == 0 else number
