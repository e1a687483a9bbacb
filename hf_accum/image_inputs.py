"""What a vision model takes: squares of one size, normalised as its image processor does it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hf_accum.augmentation import Augmentation
from hf_accum.doors import Doors, local
from hf_accum.errors import first_line
from hf_accum.images import MOST_PIXELS, Picture, open_rgb
from hf_accum.models import quiet_transformers
from hf_accum.units import Lengths

if TYPE_CHECKING:
    from transformers import BaseImageProcessor

PATCH = 16
"""Pixels a side: the length of an image is counted in squares of these, as those of a vision transformer."""

PATCHES = Lengths("patches", "resolution", vary=False, flag_step=32)
_BILINEAR = 2


def num_patches(resolution: int) -> int:
    """The length of an image of so many pixels a side."""
    return (resolution // PATCH) ** 2


def load_image_processor(name: str, doors: Doors = Doors()) -> "BaseImageProcessor":  # noqa: B008 (frozen)
    """The model's image processor, by Pillow.

    Raises:
        ValueError: if there is none under that name.
    """
    from transformers import AutoImageProcessor

    try:
        with quiet_transformers():
            return AutoImageProcessor.from_pretrained(local(name), backend="pil", **doors.of_hub)
    except Exception as error:  # files of others can be wrong in any way
        raise ValueError(
            f"--model {name}: has to be a local folder, or an id of the hub, with an image processor to load: "
            f"preprocessor_config.json ({first_line(error)})"
        ) from error


@dataclass(frozen=True, eq=False)
class ImageInputs:
    """Images as tensors (num_images, 3, resolution, resolution): a pixel's value times `scale`, plus `shift`.

    The whole image is scaled to a square, nothing is cut off. `scale` and `shift` have a value for each colour.
    """

    resolution: int
    scale: np.ndarray
    shift: np.ndarray
    resample: int = _BILINEAR
    most_pixels: int = MOST_PIXELS

    @staticmethod
    def of(processor: "BaseImageProcessor", resolution: int, most_pixels: int = MOST_PIXELS) -> "ImageInputs":
        """As the processor normalises, which black and white tell; it is changed to do the same at this size.

        Raises:
            ValueError: if what it does to a pixel is not known by that.
        """
        side = 2 * PATCH
        how: Any = {"do_resize": False, "do_center_crop": False, "return_tensors": "np"}
        try:
            black, grey, white = (
                np.asarray(processor(np.full((side, side, 3), value, np.uint8), **how)["pixel_values"])[0]
                for value in (0, 51, 255)
            )
        except Exception as error:
            raise ValueError(f"the model's image processor takes no RGB image ({first_line(error)})") from error
        scale, shift = (white - black) / 255.0, black
        is_plain = black.shape == (3, side, side) and np.allclose(grey, 51 * scale + shift, atol=1e-4)
        if not is_plain or any(np.ptp(part, axis=(1, 2)).any() for part in (black, white)):
            raise ValueError(
                f"the model's image processor, a {type(processor).__name__}, does more than to resize and normalise"
            )
        resample = getattr(processor, "resample", None)
        values: dict[str, Any] = {"do_resize": True, "size": {"height": resolution, "width": resolution}}
        if hasattr(processor, "do_center_crop"):
            values["do_center_crop"] = False
        for name, value in values.items():
            setattr(processor, name, value)
        of_colours, and_shift = (part[:, 0, 0].astype(np.float32) for part in (scale, shift))
        how = {"resample": _BILINEAR if resample is None else int(resample), "most_pixels": most_pixels}
        return ImageInputs(resolution, of_colours, and_shift, **how)

    def pixel_values(self, pictures: Sequence[Picture], augmentations: Sequence[Augmentation]) -> Tensor:
        """Decoded, augmented, normalised.

        Raises:
            BadRow: if one cannot be decoded.
        """
        values = np.empty((len(pictures), 3, self.resolution, self.resolution), dtype=np.float32)
        for index, (picture, augmentation) in enumerate(zip(pictures, augmentations, strict=True)):
            left, top, right, bottom = augmentation.box
            near = (int(self.resolution / (right - left)) + 1, int(self.resolution / (bottom - top)) + 1)
            image = open_rgb(picture, self.most_pixels, near)
            pixels = np.asarray(augmentation.image(image, self.resolution, self.resample))
            np.multiply(pixels.transpose(2, 0, 1), self.scale[:, None, None], out=values[index])
            values[index] += self.shift[:, None, None]
        return torch.from_numpy(values)


def made_up_images(num_images: int, length: int, device: torch.device) -> Tensor:
    """Images of nothing, of so many patches, for the tracer and the tuner."""
    resolution = PATCH * round(length**0.5)
    return torch.zeros(num_images, 3, resolution, resolution, device=device)
