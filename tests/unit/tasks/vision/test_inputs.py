"""What a model takes: the same as its own image processor makes, and what is saved makes the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image
from tiny_vision import stored
from transformers import AutoImageProcessor, ViTImageProcessorPil

from hf_accum.tasks.vision.augmentation import UNCHANGED
from hf_accum.tasks.vision.images import Picture
from hf_accum.tasks.vision.inputs import ImageInputs, load_image_inputs

SIDE = 64
KINDS = (
    *("ViT", "ConvNext", "MobileViT", "Levit", "PoolFormer", "EfficientNet", "Bit"),
    *("Segformer", "Beit", "MobileNetV2", "Deit", "CLIP", "Siglip", "Pvt"),
)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))


def made(inputs: ImageInputs, image: Image.Image) -> np.ndarray:
    return inputs.pixel_values([Picture("image", stored(image))], [UNCHANGED]).numpy()


def class_of(kind: str) -> Any:
    names = [name for name in dir(transformers) if name.lower() == f"{kind}ImageProcessorPil".lower()]
    return getattr(transformers, names[0])


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_those_of_the_processor_and_of_the_one_that_is_saved(tmp_path: Path, kind: str) -> None:
    """Without its resizing of an image that has the size; and by what another program makes of the saved files."""
    own = class_of(kind)()
    own.save_pretrained(tmp_path / "own")
    inputs, processor = load_image_inputs(str(tmp_path / "own"), SIDE)
    image = noise(SIDE, SIDE)
    how: Any = {"do_resize": False, "do_center_crop": False, "return_tensors": "np"}
    np.testing.assert_allclose(made(inputs, image), own(image, **how)["pixel_values"], atol=1e-4)
    processor.save_pretrained(str(tmp_path / "saved"))
    saved = AutoImageProcessor.from_pretrained(str(tmp_path / "saved"), backend="pil")
    for width, height in ((SIDE, SIDE), (100, 80), (30, 90)):
        image = noise(width, height)
        found = np.asarray(saved(image, return_tensors="np")["pixel_values"])
        np.testing.assert_allclose(made(inputs, image), found, atol=1e-4)


def test_a_model_of_blue_green_and_red_gets_them_in_its_order(tmp_path: Path) -> None:
    flipped = class_of("MobileViT")()
    assert flipped.do_flip_channel_order
    flipped.save_pretrained(tmp_path)
    inputs, _ = load_image_inputs(str(tmp_path), SIDE)
    values = made(inputs, Image.new("RGB", (SIDE, SIDE), (10, 100, 200)))[0, :, 0, 0]
    np.testing.assert_allclose(values * 255, [200, 100, 10], atol=1e-3)


class Mixing(ViTImageProcessorPil):
    """Makes one channel of three."""

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> Any:
        mixed = np.asarray(images).mean(axis=-1, keepdims=True).repeat(3, axis=-1).astype(np.uint8)
        return super().__call__(mixed, *args, **kwargs)


class Turning(ViTImageProcessorPil):
    """Takes blue first, and does not resize."""

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> Any:
        values: Any = kwargs | {"do_resize": False}
        return super().__call__(np.asarray(images)[..., ::-1], *args, **values)


@pytest.mark.parametrize(
    ("processor", "reason"),
    [
        (Mixing(), "a Mixing, has to do no more than to resize and normalise: it mixes red, green and blue"),
        (Turning(), "a Turning, cannot be told to scale whole images to a square"),
    ],
)
def test_what_is_not_known_of_a_processor_is_refused_with_the_model(
    processor: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_accum.tasks.vision.inputs.load_image_processor", lambda *_: processor)
    with pytest.raises(ValueError, match=f"^`model` some/model: its image processor, {reason}"):
        load_image_inputs("some/model", SIDE)
