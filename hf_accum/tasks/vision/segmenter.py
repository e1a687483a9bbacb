"""Semantic segmentation by any encoder that gives feature maps, with a light head on them."""

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from hf_accum.errors import UserError

_PROBED = 64  # pixels a side
_WIDTH = 64
_SMALLEST_STRIDE = 4


@dataclass
class Segmentation:
    """`logits`: (num_images, height, width, num_classes)."""

    logits: Tensor


class SegmentationHead(nn.Module):
    """Each feature map to one width by a linear layer, scaled to the largest and added up, and classes of the sum.

    As the head of SegFormer (Xie et al., 2021, section 3.2), with a sum in the place of its concatenation.
    """

    def __init__(self, channels: list[int], num_classes: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.Conv2d(number, _WIDTH, 1) for number in channels)
        self.classifier = nn.Conv2d(_WIDTH, num_classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Logits (num_images, num_classes, height, width) at the size of the largest map, which is the first."""
        size = maps[0].shape[-2:]
        total = self.levels[0](maps[0])
        for level, features in zip(list(self.levels)[1:], maps[1:], strict=True):
            total = total + F.interpolate(level(features), size=size, mode="bilinear", align_corners=False)
        return self.classifier(F.relu(total))


class SemanticSegmenter(PreTrainedModel):
    """A model of transformers, `base_model`, and a `head` on the last of its feature maps of each size.

    `config` is that of the encoder, with `num_labels` classes. The encoder stands where it does in transformers' own
    models with a head: `AutoModel.from_pretrained` of what is saved finds its weights.

    Raises:
        UserError: if the encoder gives no feature maps.
    """

    config: PreTrainedConfig
    main_input_name = "pixel_values"

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        with torch.device("meta"):
            shapes = _shapes_of_maps(AutoModel.from_config(config))
        encoder = AutoModel.from_config(config)
        self.base_model_prefix = encoder.base_model_prefix or "encoder"
        setattr(self, self.base_model_prefix, encoder)
        self._places = list(shapes)
        self.head = SegmentationHead(list(shapes.values()), int(cast(Any, config).num_labels))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """As torch does it; the encoder does its own."""

    def forward(self, pixel_values: Tensor) -> Segmentation:
        """Logits of each pixel."""
        states = _maps_of(self.base_model, pixel_values)
        logits = self.head([states[place] for place in self._places])
        whole = F.interpolate(logits, size=pixel_values.shape[-2:], mode="bilinear", align_corners=False)
        return Segmentation(whole.movedim(1, -1))

    @classmethod
    def from_config(cls, config: PreTrainedConfig, **_: Any) -> "SemanticSegmenter":
        """Without pretrained weights."""
        return cls(config)

    @classmethod
    def from_pretrained(cls, name: str, *args: Any, **how: Any) -> Any:  # type: ignore[override]
        """With the weights of an encoder, and a new head; or those that `save_pretrained` of this class wrote."""
        config, how = _config_of(name, how)
        if cls.__name__ in (getattr(config, "architectures", None) or ()):
            return super().from_pretrained(name, *args, config=config, **how)
        tells = how.pop("output_loading_info", False)
        encoder, info = AutoModel.from_pretrained(name, config=config, output_loading_info=True, **how)
        model = cls(config)
        setattr(model, model.base_model_prefix, encoder)
        new = [f"{model.base_model_prefix}.{key}" for key in info["missing_keys"]]
        new += [f"head.{key}" for key, _ in model.head.named_parameters()]
        model.eval()
        return (model, {**info, "missing_keys": set(new)}) if tells else model


def _config_of(name: str, how: dict[str, Any]) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """The config that was given, or that of the model, with the values of it among the arguments."""
    if how.get("config") is not None:
        return how["config"], {key: value for key, value in how.items() if key != "config"}
    config, unused = cast(Any, AutoConfig.from_pretrained(name, return_unused_kwargs=True, **how))
    return config, dict(unused)


def _maps_of(encoder: nn.Module, images: Tensor) -> list[Tensor]:
    """All that an encoder gives between its layers, and at its end."""
    given = encoder(images, output_hidden_states=True, return_dict=True)
    return [*given.hidden_states, given.last_hidden_state]


def _shapes_of_maps(encoder: nn.Module) -> dict[int, int]:
    """Of the last map of each size, from the largest that is used on: its place, and its channels."""
    name = type(encoder).__name__
    try:
        images = torch.zeros(1, 3, _PROBED, _PROBED, device="meta")
        states = _maps_of(encoder, images)
    except Exception as error:
        raise UserError(f"`task` segmentation: {name} gives no feature maps ({error})") from error
    if any(state.ndim != 4 for state in states):
        raise UserError(
            f"`task` segmentation: needs a model with feature maps (a convolutional one, say), which {name} has not"
        )
    last = {state.shape[-1]: place for place, state in enumerate(states)}
    places = sorted(place for size, place in last.items() if 1 < size <= _PROBED // _SMALLEST_STRIDE)
    if not places:
        raise UserError(f"`task` segmentation: {name} has no feature map between a quarter of the image and a pixel")
    return {place: states[place].shape[1] for place in places}
