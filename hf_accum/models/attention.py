"""The mask of attention: made once for all layers of a model."""

import inspect
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def share_mask(model: "PreTrainedModel") -> bool:
    """Have an encoder's layers share one mask of padding, where they can; says whether they do.

    Of a mask of bools torch's attention makes one of floats, (num_examples, 1, length, length), in each layer, and
    keeps it for the backward. One of floats that is made before the first layer is taken as it is. It has the shape
    (num_examples, 1, 1, length), the type that the layers compute in, 0 for tokens and minus infinity for padding.

    A model can if transformers makes its mask in one place, the same for all layers, and takes one of four
    dimensions as it is: not with layers that see their neighbourhood alone, or a causal mask, nor where embeddings
    read the mask too, as ESM's do.
    """
    encoder, config = model.base_model, model.config
    names = vars(sys.modules[type(encoder).__module__])
    makes_one = "create_bidirectional_mask" in names and not any("sliding" in name for name in names)
    is_causal = "create_causal_mask" in names and getattr(config, "is_decoder", True)
    is_pair = getattr(config, "is_encoder_decoder", False)
    if (
        not makes_one
        or _embeddings_read_mask(encoder)
        or is_causal
        or is_pair
        or config._attn_implementation != "sdpa"
    ):
        return False
    encoder.register_forward_pre_hook(_with_shared_mask, with_kwargs=True)
    return True


def _embeddings_read_mask(encoder: nn.Module) -> bool:
    return any(
        "attention_mask" in inspect.signature(module.forward).parameters
        for name, module in encoder.named_children()
        if "embed" in name
    )


def _with_shared_mask(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    mask = kwargs.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        return args, kwargs
    return args, kwargs | {"attention_mask": _as_floats(mask, _computed_in(module, mask.device))}


def _computed_in(module: nn.Module, device: torch.device) -> torch.dtype:
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return next(p.dtype for p in module.parameters() if p.is_floating_point())


def _as_floats(mask: Tensor, dtype: torch.dtype) -> Tensor:
    floats = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return floats.masked_fill_(mask == 0, float("-inf"))[:, None, None, :]
