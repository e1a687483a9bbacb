"""Four-bit weights (QLoRA) by bitsandbytes: loading them, and laying them out without weights."""

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_accum.errors import UserError
from hf_accum.models.precision import compute_dtype

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel

_SCALES_AT_ONCE = 256  # that double quantisation has one scale for, in bitsandbytes

# On some CPUs it tells of an operation that it could not download, each time that peft imports it; with or without
# quantisation. It is not used here (see `keep_weights_trainable_through`).
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def quantization_config(quantization: str, keep: Sequence[str], precision: str = "no") -> "BitsAndBytesConfig | None":
    """What transformers loads quantised weights by; None for `none`. Modules named in `keep` stay as they are.

    The type that 4-bit weights are multiplied in is that of `precision`, accelerate's: float32, bf16 or fp16. Double
    quantisation (Dettmers et al., QLoRA: Efficient Finetuning of Quantized LLMs, 2023, section 3): the scale of each
    64 weights, a float32, is itself in 8 bits, with a float32 for each 256 of them.

    Raises:
        UserError: if bitsandbytes is not installed.
    """
    if quantization == "none":
        return None
    if find_spec("bitsandbytes") is None:
        raise UserError(f"`quantization` {quantization}: needs bitsandbytes: pip install bitsandbytes")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization,
        bnb_4bit_compute_dtype=compute_dtype(precision),
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=list(keep),  # its name, for 4 bits too
    )


def head_modules(model: "PreTrainedModel") -> list[str]:
    """The modules beside a model's backbone: the task's head, which is trained and stays unquantised.

    A model that is a backbone (an encoder) has none.
    """
    if model.base_model is model:
        return []
    beside = (item for item in model.named_children() if item[0] != model.base_model_prefix)
    return [name for name, module in beside if any(True for _ in module.parameters())]


def quantize_without_weights(model: "PreTrainedModel", config: "BitsAndBytesConfig", dtype: torch.dtype) -> None:
    """Put 4-bit layers in the place of a `meta` model's linear ones: shapes and types as after loading in `dtype`."""
    import bitsandbytes as bnb
    from bitsandbytes.functional import QuantState
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    replace_with_bnb_linear(model, config.llm_int8_skip_modules, config)
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            weight: Any = module.weight
            if module.bias is not None:
                module.bias.data = module.bias.data.to(dtype)
            blocksize, shape = weight.blocksize, weight.shape
            num_scales = -(-shape.numel() // blocksize)
            of_scales = QuantState(
                absmax=torch.empty(-(-num_scales // _SCALES_AT_ONCE), dtype=torch.float32, device="meta"),
                code=torch.empty(256, dtype=torch.float32, device="meta"),
                blocksize=_SCALES_AT_ONCE,
                dtype=torch.float32,
            )
            state = QuantState(
                absmax=torch.empty(num_scales, dtype=torch.uint8, device="meta"),
                shape=shape,
                code=torch.empty(16, dtype=torch.float32, device="meta"),
                blocksize=blocksize,
                quant_type=config.bnb_4bit_quant_type,
                dtype=dtype,
                offset=torch.empty((), dtype=torch.float32, device="meta"),
                state2=of_scales,
            )
            packed = torch.empty((-(-shape.numel() // 2), 1), dtype=torch.uint8, device="meta")
            make: Any = bnb.nn.Params4bit
            module.weight = make(packed, quant_state=state, blocksize=blocksize, bnb_quantized=True, module=module)
    check_quantized(model)
    keep_weights_trainable_through(model)
    setattr(model, "is_loaded_in_4bit", True)  # noqa: B010 (what peft knows it by; no parameter)


def check_quantized(model: nn.Module) -> None:
    """Refuse a model that was to be quantised, and of which no layer is.

    Raises:
        UserError: naming it.
    """
    import bitsandbytes as bnb

    if not any(isinstance(module, bnb.nn.Linear4bit) for module in model.modules()):
        raise UserError(
            f"`quantization` nf4: {type(model).__name__} has no linear layer beside its head, and only such layers "
            "can have 4-bit weights; leave the flag out"
        )


def keep_weights_trainable_through(model: nn.Module) -> None:
    """Keep 4-bit layers from repacking their weights in the first forward without gradients.

    On CPUs with AVX512-BF16 bitsandbytes 0.50 does so, for an operation that has no backward: after an evaluation
    no gradient would pass through the layer, without a word.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 (no parameter, as a type checker thinks)
