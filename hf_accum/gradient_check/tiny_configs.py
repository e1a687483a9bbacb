"""Configs of transformers' architectures, each as small as its checks take seconds, with random weights."""

from typing import Any

from hf_accum.models.dropout import set_config_dropout

_SIZES: dict[str, Any] = {
    **dict.fromkeys(
        ("hidden_size", "d_model", "dim", "n_embd", "embed_dim", "embedding_size", "decoder_hidden_size"), 16
    ),
    **dict.fromkeys(("word_embed_proj_dim", "adapter_hidden_size", "output_hidden_size", "classifier_proj_size"), 16),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 2
    ),
    **dict.fromkeys(("num_decoder_layers", "num_adapter_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "d_inner"), 32),
    **dict.fromkeys(("hidden_dim", "n_inner", "moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("head_dim", "d_kv", "d_head", "attention_head_size"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_source_positions", "max_target_positions"), 40),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk"), 2),
    "vocab_size": 120,
    "type_vocab_size": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
    "decoder_start_token_id": 1,
    "image_size": 32,
    "patch_size": 8,
    "num_mel_bins": 16,
    "max_length": 64,
    "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "initializer_range": 0.2,  # so that what goes in shows in what comes out
}

_OWN: dict[str, dict[str, Any]] = {
    "bart": {"forced_eos_token_id": None},
    "convnext": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "patch_size": 4},
    "convnextv2": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "patch_size": 4},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "t5": {"decoder_start_token_id": 0},
    "mt5": {"decoder_start_token_id": 0},
    "longformer": {"attention_window": 8},
    "mobilenet_v2": {"depth_multiplier": 0.25},
    "modernbert": {"local_attention": 8},
    "poolformer": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "patch_size": 7},
    "regnet": {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "groups_width": 4},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
    "roberta": {"max_position_embeddings": 42},
    "segformer": {
        "hidden_sizes": [8] * 4,
        "num_attention_heads": [1] * 4,
        "depths": [1] * 4,
        "patch_sizes": [7, 3, 3, 3],
    },
    "swin": {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, "patch_size": 4},
    "swinv2": {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, "patch_size": 4},
    "xlm-roberta": {"max_position_embeddings": 42},
    "camembert": {"max_position_embeddings": 42},
    "efficientnet": {
        "width_coefficient": 0.05,
        "depth_coefficient": 1.0,
        "depth_divisor": 4,
        "kernel_sizes": [3, 3, 5],
        "in_channels": [32, 80, 160],
        "out_channels": [80, 160, 320],
        "strides": [1, 2, 2],
        "num_block_repeats": [1, 2, 1],
        "expand_ratios": [1, 2, 2],
        "depthwise_padding": [],
        "hidden_dim": 64,
    },
    "electra": {"embedding_size": 16},
    "beit": {"out_indices": [0, 1, 2, 3], "num_hidden_layers": 4, "use_auxiliary_head": False},
    "data2vec-vision": {"out_indices": [0, 1, 2, 3], "num_hidden_layers": 4, "use_auxiliary_head": False},
    "dpt": {
        "neck_hidden_sizes": [8] * 4,
        "num_hidden_layers": 4,
        "backbone_out_indices": [0, 1, 2, 3],
        "fusion_hidden_size": 8,
    },
    "mobilevit": {
        "hidden_sizes": [8, 16, 16],
        "neck_hidden_sizes": [4, 8, 8, 16, 16, 16, 16],
        "patch_size": 2,
        "image_size": 64,
    },
    "wav2vec2-bert": {"feature_projection_input_dim": 16},
    "xlnet": {"max_position_embeddings": None},
}


def tiny_config(model_type: str, **more: Any) -> Any:
    """A config of an architecture, by the name that transformers gives it. Nothing in it is random in training.

    Raises:
        Exception: of many kinds, where such sizes cannot be.
    """
    from transformers import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[model_type]
    fields = config_class().to_dict()
    sizes = {name: value for name, value in _SIZES.items() if name in fields} | _OWN.get(model_type, {})
    sizes = {name: value for name, value in sizes.items() if value is not None}
    for name, value in fields.items():
        if isinstance(value, dict) and name.endswith("_config") and value.get("model_type"):
            inner = {field: of for field, of in _SIZES.items() if field in value}
            sizes[name] = {"model_type": value["model_type"]} | inner
    config = config_class(**{**sizes, **more})
    set_config_dropout(config, 0.0)
    return config
