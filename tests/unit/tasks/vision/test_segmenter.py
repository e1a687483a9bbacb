"""A segmentation model from any encoder that gives feature maps."""

from pathlib import Path

import pytest
import torch
from tiny_vision import save_vision_model
from transformers import AutoConfig, ViTConfig

from hf_accum.tasks.vision.segmenter import SemanticSegmenter


def test_a_segmenter_has_its_encoder_s_weights_and_is_saved_and_loaded(tmp_path: Path) -> None:
    save_vision_model(tmp_path / "encoder")
    torch.manual_seed(5)
    model, info = SemanticSegmenter.from_pretrained(str(tmp_path / "encoder"), num_labels=3, output_loading_info=True)
    assert info["missing_keys"] == {f"head.{name}" for name, _ in model.head.named_parameters()}
    images = torch.randn(2, 3, 64, 96)
    logits = model(images).logits
    assert logits.shape == (2, 64, 96, 3)
    model.save_pretrained(str(tmp_path / "saved"))
    again = SemanticSegmenter.from_pretrained(str(tmp_path / "saved")).eval()
    assert torch.equal(again(images).logits, logits)
    from transformers import EfficientNetModel

    encoder = EfficientNetModel.from_pretrained(str(tmp_path / "encoder"))
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, model.base_model.state_dict()[name]), name


def test_a_model_without_feature_maps_is_refused(tmp_path: Path) -> None:
    ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=64
    ).save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match=r"`task` segmentation: needs a model with feature maps .* ViTModel has not"):
        SemanticSegmenter.from_config(AutoConfig.from_pretrained(str(tmp_path)))
