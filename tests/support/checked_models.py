"""Models whose gradient depends on the cut, and models whose does not, as a run's start sees them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tiny import CONFIGS, SMALLEST, VOCAB_SIZE, make_decoder_config
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig

from hf_accum.accumulation.example import Example
from hf_accum.gradient_check.forwards import Computed

CPU = torch.device("cpu")


def text_config(model_type: str, **more: Any) -> PreTrainedConfig:
    """Of any architecture of texts, tiny, with more positions than the other tiny ones have."""
    return AutoConfig.for_model(model_type, **SMALLEST | {"max_position_embeddings": 64} | more)


def classifier_of(config: Any, **more: Any) -> nn.Module:
    """A random classifier without dropout, in train mode."""
    from hf_accum.models.dropout import set_config_dropout, set_dropout

    torch.manual_seed(0)
    config = config.__class__.from_dict(config.to_dict() | {"num_labels": 3, "pad_token_id": 0})
    set_config_dropout(config, 0.0)
    for name, value in more.items():
        setattr(config, name, value)
    model = AutoModelForSequenceClassification.from_config(config)
    set_dropout(model, 0.0)
    return model.train()


def texts(number: int = 3, length: int = 9) -> list[Example]:
    draw = np.random.default_rng(0)
    return [
        Example(str(index), length, 1.0, {"input_ids": draw.integers(4, VOCAB_SIZE, length), "label": index % 3})
        for index in range(number)
    ]


def collate(examples: Sequence[Example], length: int) -> tuple[dict[str, Tensor], Tensor]:
    from hf_accum.tasks.tokenization import pad

    return pad(examples, 0, length), torch.tensor([example.features["label"] for example in examples])


def computed_of(
    model: nn.Module,
    *,
    max_length: int = 20,
    num_examples: int | Callable[[int], int] = 8,
    precision: str = "float32",
    **how: Any,
) -> Computed:
    """A classification of texts."""

    def summed_loss(model: nn.Module, batch: tuple[dict[str, Tensor], Tensor]) -> Tensor:
        inputs, labels = batch
        return F.cross_entropy(model(**inputs).logits.float(), labels, reduction="sum")

    autocast = partial(torch.autocast, "cpu", torch.bfloat16) if precision == "bfloat16" else None

    most = num_examples if callable(num_examples) else lambda _: num_examples
    return Computed(model, summed_loss, collate, CPU, most, max_length=max_length, autocast=autocast, **how)


def images(number: int = 2, side: int = 32) -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    return [
        Example(str(index), 1, 1.0, {"image": torch.randn(3, side, side, generator=generator), "label": index % 3})
        for index in range(number)
    ]


def computed_of_images(model: nn.Module, **how: Any) -> Computed:
    """A classification of images."""
    of_texts = computed_of(model, **how)

    def make_batch(examples: Sequence[Example], length: int) -> tuple[dict[str, Tensor], Tensor]:
        pixels = torch.stack([example.features["image"] for example in examples])
        return {"pixel_values": pixels}, torch.tensor([example.features["label"] for example in examples])

    return replace(of_texts, make_batch=make_batch, max_length=1, vary=False)


WITHOUT_FAULT: dict[str, PreTrainedConfig] = {
    **{name: config for name, config in CONFIGS.items() if name != "biogpt"},
    "albert": text_config("albert", embedding_size=8),
    "mpnet": text_config("mpnet"),
    "gpt2": AutoConfig.for_model(
        "gpt2", vocab_size=VOCAB_SIZE, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3
    ),
    "qwen2": make_decoder_config("qwen2"),
}
"""Of texts."""

_ALONE = "`micro_batch_size 1` computes each by itself"
_BELOW = "`max_length 20` keeps all texts below"
_FREQUENCIES = (
    "the frequencies of positions follow the longest text, in layer model.rotary_emb ({}RotaryEmbedding), by "
    "`rope_parameters` of its config (rope_type {}); only with texts beyond `{}` 20 of its config"
)
_LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 20,
}
WITH_FAULT: dict[str, tuple[PreTrainedConfig, str, str]] = {
    "FNet": (
        text_config("fnet", tpu_short_seq_length=16),
        "padding reaches the result, first in layer fnet.encoder.layer.0.fourier.self (FNetBasicFourierTransform)",
        _ALONE,
    ),
    "ConvBERT": (
        text_config("convbert", embedding_size=16, conv_kernel_size=3, head_ratio=1),
        "padding reaches the result, first in layer convbert.encoder.layer.0.attention.self.key_conv_attn_layer",
        _ALONE,
    ),
    "Nystromformer": (
        text_config("nystromformer", num_landmarks=4, segment_means_seq_len=4, conv_kernel_size=5),
        "padding reaches the result, first in layer nystromformer.encoder.layer.0.attention.self.conv (Conv2d)",
        _ALONE,
    ),
    "CANINE": (  # the molecules of padding are seen by those of a text; its first layers, in blocks, differ in calls
        text_config("canine", num_hash_buckets=64, local_transformer_stride=8),
        "padding reaches the result, first in layer canine.encoder.layer.0.attention.self",
        _ALONE,
    ),
    "dynamic": (
        make_decoder_config(
            "llama",
            max_position_embeddings=20,
            rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0},
        ),
        _FREQUENCIES.format("Llama", "dynamic", "max_position_embeddings"),
        _BELOW,
    ),
    "longrope": (
        make_decoder_config(
            "phi3",
            max_position_embeddings=64,
            original_max_position_embeddings=20,
            rope_parameters=_LONGROPE,
        ),
        _FREQUENCIES.format("Phi3", "longrope", "original_max_position_embeddings"),
        _BELOW,
    ),
}
"""A config, how the cause begins that is found for it, and the way out."""


def experts_of(model_type: str, capacity: int) -> nn.Module:
    """A layer of two experts that take so many tokens: nllb-moe of the whole batch, switch_transformers of a text."""
    from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeSparseMLP
    from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersSparseMLP

    from hf_accum.models.dropout import set_config_dropout

    config: Any = AutoConfig.for_model(model_type, d_model=8, d_ff=16, num_experts=2, expert_capacity=capacity)
    set_config_dropout(config, 0.0)
    torch.manual_seed(0)
    layer = NllbMoeSparseMLP(config, 16) if model_type == "nllb-moe" else SwitchTransformersSparseMLP(config)
    layer.config = config
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return layer
