"""Augmentation of images, drawn from a seed and applied to an image and its mask alike."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from hf_accum.seeding import derive_seed

_NEAREST = Image.Resampling.NEAREST


@dataclass(frozen=True)
class Augmentation:
    """What is done to one image: a part of it, as shares of its width and height; a mirror; its light and colours."""

    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    mirrored: bool = False
    brightness: float = 1.0
    contrast: float = 1.0
    colour: float = 1.0

    def __str__(self) -> str:
        left, top, right, bottom = (f"{share:.0%}" for share in self.box)
        changes = [] if self.box == UNCHANGED.box else [f"the part from ({left}, {top}) to ({right}, {bottom})"]
        changes += ["mirrored"] if self.mirrored else []
        factors = (("brightness", self.brightness), ("contrast", self.contrast), ("colour", self.colour))
        changes += [f"{name} x {factor:.2f}" for name, factor in factors if factor != 1.0]
        return ", ".join(changes) or "not"

    def image(self, image: Image.Image, resolution: int, resample: int) -> Image.Image:
        """The part as a square of so many pixels a side, with its light and colours."""
        image = self._square(image, resolution, resample)
        for kind, factor in (
            (ImageEnhance.Brightness, self.brightness),
            (ImageEnhance.Contrast, self.contrast),
            (ImageEnhance.Color, self.colour),
        ):
            if factor != 1.0:
                image = kind(image).enhance(factor)
        return image

    def mask(self, mask: Image.Image, resolution: int) -> Image.Image:
        """The same part of a mask, each pixel of it the nearest one's class."""
        return self._square(mask, resolution, _NEAREST)

    def _square(self, image: Image.Image, resolution: int, resample: int) -> Image.Image:
        width, height = image.size
        left, top, right, bottom = self.box
        part = (left * width, top * height, right * width, bottom * height)
        square = image.resize((resolution, resolution), Image.Resampling(resample), box=part)
        return ImageOps.mirror(square) if self.mirrored else square


UNCHANGED = Augmentation()


@dataclass(frozen=True)
class Augmenter:
    """How far augmentations go.

    A part keeps at least `crop_scale` of the image's area, its shape and its place drawn evenly; `mirror` turns half
    of the images around; light and colours change by factors of up to 1 +- `color_jitter`.
    """

    seed: int
    crop_scale: float
    mirror: bool
    color_jitter: float

    def draw(self, epoch: int, example_id: str) -> Augmentation:
        """That of an example in a pass: it depends on nothing else."""
        random = np.random.Generator(np.random.PCG64(derive_seed(self.seed, "augmentation", epoch, example_id)))
        width, height = np.sqrt(random.uniform(self.crop_scale, 1.0, size=2))
        left, top = random.uniform(size=2) * (1.0 - width, 1.0 - height)
        factors = 1.0 + self.color_jitter * random.uniform(-1.0, 1.0, size=3)
        mirrored = bool(random.random() < 0.5) and self.mirror
        box = (float(left), float(top), min(1.0, float(left + width)), min(1.0, float(top + height)))
        return Augmentation(box, mirrored, *map(float, factors))
