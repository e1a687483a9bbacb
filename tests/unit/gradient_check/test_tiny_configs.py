"""Configs as small as can be."""

from typing import Any

import pytest
import torch
from transformers import AutoModel

from hf_accum.gradient_check.tiny_configs import tiny_config
from hf_accum.models.dropout import random_fields


@pytest.mark.parametrize(
    "architecture", ["bert", "gpt2", "t5", "deberta-v2", "resnet", "segformer", "vit", "wav2vec2", "hubert"]
)
def test_a_model_of_it_is_built_in_no_time(architecture: str) -> None:
    config = tiny_config(architecture, num_labels=3)
    with torch.device("meta"):
        model: Any = AutoModel.from_config(config)
    assert config.num_labels == 3
    assert random_fields(config) == []
    assert sum(parameter.numel() for parameter in model.parameters()) < 200_000
