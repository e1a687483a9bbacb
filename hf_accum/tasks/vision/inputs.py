"""What a vision model takes: squares of one size, normalised as its image processor does it."""

import io
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from hf_accum.accumulation.example import Lengths
from hf_accum.config.trust import Trust
from hf_accum.errors import UserError, first_line
from hf_accum.models.loading import quiet_transformers
from hf_accum.models.modes import keeping_modes
from hf_accum.models.trust import local
from hf_accum.tasks.vision.augmentation import UNCHANGED, Augmentation
from hf_accum.tasks.vision.images import MOST_PIXELS, Colours, Picture, open_rgb

if TYPE_CHECKING:
    from transformers import BaseImageProcessor

PATCH = 16
"""Pixels a side: the length of an image is counted in squares of these, as those of a vision transformer."""

PATCHES = Lengths("patches", "resolution", vary=False, flag_step=32)
_BILINEAR = 2
_COLOUR = (10, 100, 200)


def num_patches(resolution: int) -> int:
    """The length of an image of so many pixels a side."""
    return (resolution // PATCH) ** 2


def load_image_processor(name: str, trust: Trust = Trust()) -> "BaseImageProcessor":  # noqa: B008 (frozen)
    """The model's image processor, by Pillow.

    Raises:
        UserError: if there is none under that name.
    """
    from transformers import AutoImageProcessor

    try:
        with quiet_transformers():
            return AutoImageProcessor.from_pretrained(local(name), backend="pil", **trust.of_hub)
    except Exception as error:  # files of others can be wrong in any way
        raise UserError(
            f"`model` {name}: has to be a local folder, or an id of the hub, with an image processor to load: "
            f"preprocessor_config.json ({first_line(error)})"
        ) from error


def load_image_inputs(
    name: str,
    resolution: int,
    most_pixels: int = MOST_PIXELS,
    trust: Trust = Trust(),  # noqa: B008 (frozen)
    colours: Colours = Colours(),  # noqa: B008 (frozen)
) -> tuple["ImageInputs", "BaseImageProcessor"]:
    """What a model takes at a size, and an image processor that makes the same, to be saved beside the weights.

    Raises:
        UserError: as `load_image_processor`, `ImageInputs.of` and `ImageInputs.processor` do.
    """
    own = load_image_processor(name, trust)
    try:
        inputs = replace(ImageInputs.of(own, resolution, most_pixels), colours=colours)
        return inputs, inputs.processor(own)
    except ValueError as error:
        raise UserError(f"`model` {name}: {error}") from error


@dataclass(frozen=True, eq=False)
class ImageInputs:
    """Images as tensors (num_images, 3, resolution, resolution): a pixel's value times `scale`, plus `shift`.

    The whole image is scaled to a square, nothing is cut off. `scale` and `shift` have a value for each channel;
    `order` tells which of red, green and blue a channel is.
    """

    resolution: int
    scale: np.ndarray
    shift: np.ndarray
    resample: int = _BILINEAR
    most_pixels: int = MOST_PIXELS
    order: tuple[int, ...] = (0, 1, 2)
    colours: Colours = field(default_factory=Colours)

    @staticmethod
    def of(processor: "BaseImageProcessor", resolution: int, most_pixels: int = MOST_PIXELS) -> "ImageInputs":
        """As the processor normalises, which images of one colour tell.

        Raises:
            UserError: if what it does to a pixel is not known by that.
        """
        side = 2 * PATCH
        how: Any = {"do_resize": False, "do_center_crop": False, "return_tensors": "np"}
        colours = [(0, 0, 0), (51, 51, 51), (255, 255, 255), _COLOUR]
        try:
            probed = [
                np.asarray(processor(np.full((side, side, 3), colour, np.uint8), **how)["pixel_values"])[0]
                for colour in colours
            ]
        except Exception as error:
            raise UserError(f"its image processor takes no RGB image ({first_line(error)})") from error
        known = f"its image processor, a {type(processor).__name__}, has to do no more than to resize and normalise"
        if any(values.shape != (3, side, side) or np.ptp(values, axis=(1, 2)).any() for values in probed):
            raise UserError(known)
        black, grey, white, coloured = (values[:, 0, 0].astype(np.float32) for values in probed)
        scale, shift = (white - black) / np.float32(255), black
        if not (scale > 0).all() or not np.allclose(grey, 51 * scale + shift, atol=1e-4):
            raise UserError(known)
        order = tuple(int(np.abs(np.array(_COLOUR) - value).argmin()) for value in (coloured - shift) / scale)
        expected = np.array(_COLOUR)[list(order)] * scale + shift
        if set(order) != {0, 1, 2} or not np.allclose(coloured, expected, atol=1e-4):
            raise UserError(f"{known}: it mixes red, green and blue")
        resample = getattr(processor, "resample", None)
        return ImageInputs(
            resolution, scale, shift, _BILINEAR if resample is None else int(resample), most_pixels, order
        )

    def processor(self, own: "BaseImageProcessor") -> "BaseImageProcessor":
        """An image processor that makes the same of an image: the model's own at this size, or else a plain one.

        Some do not resize as they are told: by a share that is cut off, or by one side.

        Raises:
            UserError: if there is none.
        """
        from transformers import ViTImageProcessorPil

        size = {"height": self.resolution, "width": self.resolution}
        at_size: dict[str, Any] = {"do_resize": True, "size": size}
        if hasattr(own, "do_center_crop"):
            at_size["do_center_crop"] = False
        kind: Any = type(own)
        std = 1 / (255.0 * self.scale)
        normalised = {"image_mean": np.round(-self.shift * std, 6).tolist(), "image_std": np.round(std, 6).tolist()}
        for make in (
            lambda: kind.from_dict(own.to_dict() | at_size),
            lambda: ViTImageProcessorPil(size=size, resample=self.resample, **normalised),
        ):
            with suppress(Exception):  # of others' code, which was made for other sizes
                found = make()
                if self._are_made_by(found):
                    return found
        raise UserError(
            f"its image processor, a {kind.__name__}, cannot be told to scale whole images to a square, and no plain "
            "one takes red, green and blue in its order"
        )

    def _are_made_by(self, processor: "BaseImageProcessor") -> bool:
        """Whether it makes the same of an image that is no square."""
        pixels = np.random.default_rng(0).integers(0, 256, (3 * PATCH, 5 * PATCH, 3), dtype=np.uint8)
        made = np.asarray(processor(pixels, return_tensors="np")["pixel_values"])
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        expected = self.pixel_values([Picture("", buffer.getvalue())], [UNCHANGED]).numpy()
        return made.shape == expected.shape and np.allclose(made, expected, atol=1e-4)

    def pixel_values(self, pictures: Sequence[Picture], augmentations: Sequence[Augmentation]) -> Tensor:
        """Decoded, augmented, normalised.

        Raises:
            BadRow: if one cannot be decoded.
        """
        values = np.empty((len(pictures), 3, self.resolution, self.resolution), dtype=np.float32)
        for index, (picture, augmentation) in enumerate(zip(pictures, augmentations, strict=True)):
            left, top, right, bottom = augmentation.box
            near = (int(self.resolution / (right - left)) + 1, int(self.resolution / (bottom - top)) + 1)
            image = open_rgb(picture, self.most_pixels, near, self.colours)
            pixels = np.asarray(augmentation.image(image, self.resolution, self.resample))
            np.multiply(pixels.transpose(2, 0, 1)[list(self.order)], self.scale[:, None, None], out=values[index])
            values[index] += self.shift[:, None, None]
        return torch.from_numpy(values)


def inputs_without_processor(resolution: int) -> ImageInputs:
    """Of a size, with values as they are: for a plan, which has no images."""
    return ImageInputs(resolution, np.ones(3, np.float32), np.zeros(3, np.float32))


def made_up_images(num_images: int, length: int, device: torch.device) -> Tensor:
    """Images of nothing, of so many patches, for the tracer and the tuner."""
    resolution = PATCH * round(length**0.5)
    return torch.zeros(num_images, 3, resolution, resolution, device=device)


def check_resolution(model: nn.Module, name: str, resolution: int) -> None:
    """Refuse images of a size that a model on `meta` cannot take, by a forward of one.

    Raises:
        UserError: naming what its config says.
    """
    try:
        with keeping_modes(model), torch.no_grad():
            model.eval()
            model(pixel_values=torch.zeros(1, 3, resolution, resolution, device="meta"))
    except Exception as error:  # each model has its own
        if isinstance(error, NotImplementedError) or "meta tensor" in str(error):
            return  # it asks for values: nothing is said of the size
        of_config = getattr(getattr(model, "config", None), "image_size", None)
        said = "" if of_config is None else f": its config says image_size {of_config}"
        raise UserError(
            f"`resolution` {resolution}: {name!r}, a {type(model).__name__}, takes no images of that size{said} "
            f"({first_line(error)})"
        ) from error
