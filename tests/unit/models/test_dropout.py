"""What is random in training, set to one probability or turned off."""

from typing import Any

import pytest
import torch
from tiny import CONFIGS, make_decoder_config, make_inputs
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from hf_accum.errors import UserError
from hf_accum.models.dropout import random_fields, set_config_dropout, set_dropout

SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
OF_IMAGES: dict[str, dict[str, Any]] = {
    "vit": SMALL | {"image_size": 32, "patch_size": 8},
    "beit": SMALL | {"image_size": 32, "patch_size": 8, "drop_path_rate": 0.5},
    "dinov3_vit": SMALL | {"image_size": 32, "patch_size": 8},
    "swin": {
        "image_size": 32,
        "patch_size": 4,
        "window_size": 4,
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [1, 2],
    },
    "cvt": {
        "embed_dim": [8, 8, 8],
        "num_heads": [1, 1, 1],
        "depth": [1, 2, 3],
        "drop_path_rate": [0.5, 0.5, 0.5],
        "drop_rate": [0.5, 0.5, 0.5],
        "attention_drop_rate": [0.5, 0.5, 0.5],
    },
    "convnext": {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "drop_path_rate": 0.9},
}
OF_TEXTS: dict[str, PreTrainedConfig] = CONFIGS | {
    "gpt2": AutoConfig.for_model("gpt2", vocab_size=50, n_embd=16, n_layer=2, n_head=2),
    "biogpt": AutoConfig.for_model("biogpt", vocab_size=50, layerdrop=0.5, **SMALL),
    "mixtral": make_decoder_config("mixtral", num_local_experts=2, router_jitter_noise=0.5),
    "phimoe": make_decoder_config("phimoe", num_local_experts=2, input_jitter_noise=0.5),
    "dbrx": AutoConfig.for_model(
        "dbrx",
        vocab_size=50,
        d_model=16,
        n_heads=2,
        n_layers=2,
        ffn_config={"ffn_hidden_size": 16, "moe_jitter_eps": 0.5, "moe_num_experts": 2, "moe_top_k": 1},
        attn_config={"rope_theta": 10_000.0, "kv_n_heads": 1, "attn_pdrop": 0.5, "clip_qkv": 8},
    ),
}
OF_RECORDINGS = AutoConfig.for_model(
    "wav2vec2",
    **SMALL,
    conv_dim=(8,),
    conv_stride=(4,),
    conv_kernel=(4,),
    num_conv_pos_embeddings=4,
    num_conv_pos_embedding_groups=2,
    mask_time_prob=0.3,
    mask_time_length=2,
    mask_feature_prob=0.3,
    mask_feature_length=2,
    layerdrop=0.5,
)


def case(name: str) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
    if name in OF_TEXTS:
        return OF_TEXTS[name], make_inputs()
    if name in OF_IMAGES:
        return AutoConfig.for_model(name, **OF_IMAGES[name]), {"pixel_values": torch.randn(2, 3, 32, 32)}
    return OF_RECORDINGS, {"input_values": torch.randn(2, 400)}


@pytest.mark.parametrize("name", [*OF_TEXTS, *OF_IMAGES, "wav2vec2"])
def test_nothing_is_random_without_dropout(name: str) -> None:
    original, inputs = case(name)
    config = original.__class__.from_dict(original.to_dict())
    types = {field: type(value) for field, value in vars(config).items()}
    set_config_dropout(config, 0.0)
    assert {field: type(value) for field, value in vars(config).items() if value is not None} == {
        field: kind for field, kind in types.items() if vars(config)[field] is not None
    }
    model = AutoModel.from_config(config)
    set_dropout(model, 0.0)
    model.train()

    def states(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return model(**inputs).last_hidden_state

    first = states(0)
    assert all(torch.equal(states(seed), first) for seed in (1, 2))


@pytest.mark.parametrize("name", ["mixtral", "dbrx", "biogpt"])
def test_what_is_turned_off_would_have_been_random(name: str) -> None:
    config = OF_TEXTS[name]
    model = AutoModel.from_config(config).train()
    set_dropout(model, 0.0)
    outputs = []
    for seed in range(4):
        torch.manual_seed(seed)
        outputs.append(model(**make_inputs()).last_hidden_state)
    assert not all(torch.equal(outputs[0], output) for output in outputs)


def test_fields_of_each_kind() -> None:
    fields: dict[str, Any] = {
        "hidden_dropout_prob": 0.1,
        "resid_pdrop": 0,
        "classifier_dropout": None,
        "token_dropout": True,  # of ESM: a factor that makes up for masks, always the same
        "drop_rate": (0.1, 0.2),
        "layerdrop": 0.1,
        "drop_path_rate": [0, 0.1],
        "router_jitter_noise": 0.01,
        "apply_spec_augment": True,
        "pos_embed_rescale": 2.0,
    }
    config: Any = PreTrainedConfig(**fields)
    set_config_dropout(config, 0.3)
    assert (config.hidden_dropout_prob, config.resid_pdrop, config.drop_rate) == (0.3, 0.3, (0.3, 0.3))
    assert (config.layerdrop, config.drop_path_rate, config.router_jitter_noise) == (0.1, [0, 0.1], 0.01)
    assert config.apply_spec_augment
    assert config.pos_embed_rescale == 2.0
    set_config_dropout(config, 0.0)
    assert (config.hidden_dropout_prob, config.drop_rate, config.classifier_dropout) == (0.0, (0.0, 0.0), None)
    assert (config.layerdrop, config.drop_path_rate, config.router_jitter_noise) == (0.0, [0, 0.0], 0.0)
    assert not config.apply_spec_augment
    assert config.pos_embed_rescale is None
    assert config.token_dropout is True


def test_fields_that_make_a_model_random_are_listed_with_their_values_and_those_inside() -> None:
    encoder = AutoConfig.for_model("bert", hidden_dropout_prob=0.1, attention_probs_dropout_prob=0)
    decoder = AutoConfig.for_model("bert", hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.2)
    fields: dict[str, Any] = {"layerdrop": 0.3, "token_dropout": True, "drop_path": [0, 0]}
    config = PreTrainedConfig(**fields, encoder=encoder, decoder=decoder)  # type: ignore[call-arg]
    found = ["hidden_dropout_prob=0.1", "attention_probs_dropout_prob=0.2", "layerdrop=0.3"]
    assert sorted(random_fields(config)) == sorted(found)
    set_config_dropout(config, 0.0)
    assert random_fields(config) == []
    assert random_fields(None) == random_fields({"dropout": 0.1}) == []


def test_dropouts_of_any_kind_are_set() -> None:
    model = nn.Sequential(nn.Dropout(0.1), nn.Sequential(nn.Dropout1d(0.2), nn.AlphaDropout(0.3)), nn.Linear(2, 2))
    set_dropout(model, 0.4)
    assert [module.p for module in model.modules() if hasattr(module, "p")] == [0.4] * 3


def test_fields_that_take_whole_numbers_are_set_to_zero_and_to_nothing_else() -> None:
    """transformers checks the types of some configs: 0.0 is refused where 0 is meant."""
    levit: Any = AutoConfig.for_model("levit")
    mpt: Any = AutoConfig.for_model("mpt")
    for config in (levit, mpt):
        set_config_dropout(config, 0.0)
    for value in (levit.drop_path_rate, mpt.attn_config.attn_pdrop):
        assert (value, type(value)) == (0, int)
    with pytest.raises(UserError, match=r"`dropout` 0\.2: has to be left out, or 0: `attn_pdrop` of .* takes whole"):
        set_config_dropout(mpt, 0.2)
