"""Road signs, drawn, in real photographs: synthetic data, which no one should mistake for a test of real driving.

Each image is a square part of a photograph of `scikit-image` or `scikit-learn`, 1,024 pixels a side, with one sign of
77 to 102 pixels: a shape, a colour and a symbol, seen askew, in some light, slightly blurred. Two symbols share each
shape and colour. Scaled to 224 pixels a sign is 17 to 22 pixels wide: harder to tell, not impossible. All of it comes
from one seed. There are only eleven photographs, and each is behind many signs: held-out images show new signs in new
places, before what is known. The column `photograph` names them, for a split by photographs (`--group_column`).
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from hf_accum.seeding import derive_seed
from recipes.embedded.cache import cached_dataset
from recipes.embedded.models import package_folder

CLASSES = ("ahead", "crossroads", "danger", "left")
"""In masks they are 1, 2, ...; 0 is the background."""

_VERSION = 2
_NUM_IMAGES = 800
_SIDE = 1024
_SMALLEST, _LARGEST = 96, 128  # with the room around a sign
_OF_SKIMAGE = (
    "astronaut.png brick.png camera.png chelsea.png coffee.png grass.png gravel.png motorcycle_left.png rocket.jpg"
)
_OF_SKLEARN = "china.jpg flower.jpg"
_CANVAS = 256
_RED, _BLUE, _WHITE, _BLACK = (200, 20, 30), (15, 70, 170), (245, 245, 245), (15, 15, 15)
_CORNERS = ((0.0, 0.0), (0.0, 1.0), (1.0, 1.0), (1.0, 0.0))


def road_signs() -> str:
    """A folder with the dataset: columns `image` and `mask` (as `datasets` has images), `label`, `photograph`.

    Raises:
        UserError: if `scikit-image` is not installed.
    """
    photographs = _photographs()
    return cached_dataset(f"road-signs-v{_VERSION}", lambda: draw_signs(photographs, _NUM_IMAGES), row_group_size=40)


def draw_signs(photographs: list[Path], num_images: int, side: int = _SIDE) -> Iterator[dict[str, Any]]:
    """The rows; classes in turn. With another `side` all of an image is so much smaller."""
    opened = [Image.open(path).convert("RGB") for path in photographs]
    for index in range(num_images):
        random = np.random.Generator(np.random.PCG64(derive_seed("road signs", _VERSION, index)))
        label = CLASSES[index % len(CLASSES)]
        which = int(random.integers(len(opened)))
        image = _background(opened[which], side, random)
        mask = Image.new("L", image.size)
        _place(_sign(label, random), CLASSES.index(label) + 1, image, mask, random)
        row: dict[str, Any] = {"image": _stored(image, "JPEG"), "mask": _stored(mask, "PNG")}
        yield row | {"label": label, "photograph": photographs[which].stem}


def _photographs() -> list[Path]:
    skimage = package_folder("skimage", "scikit-image", "--dataset", "recipes") / "data"
    sklearn = package_folder("sklearn", "scikit-learn", "--dataset", "recipes") / "datasets" / "images"
    return [*(skimage / name for name in _OF_SKIMAGE.split()), *(sklearn / name for name in _OF_SKLEARN.split())]


def _stored(image: Image.Image, format_name: str) -> dict[str, object]:
    buffer = io.BytesIO()
    image.save(buffer, format_name, quality=90)
    return {"bytes": buffer.getvalue(), "path": None}


def _background(photograph: Image.Image, side: int, random: np.random.Generator) -> Image.Image:
    """A square part of a photograph, in another light, perhaps turned around."""
    most = min(photograph.size)
    part = int(random.uniform(0.6, 1.0) * most)
    left, top = (int(random.integers(0, length - part + 1)) for length in photograph.size)
    resample = Image.Resampling.BICUBIC
    image = photograph.resize((side, side), resample, box=(left, top, left + part, top + part))
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return ImageEnhance.Brightness(image).enhance(random.uniform(0.7, 1.2))


def _place(
    sign: Image.Image, number: int, image: Image.Image, mask: Image.Image, random: np.random.Generator
) -> None:
    """Put a sign somewhere into an image, in its light, and its class into the mask."""
    side = image.width
    width = max(2, round(random.uniform(_SMALLEST, _LARGEST) * side / _SIDE))
    small = sign.resize((width, width), Image.Resampling.LANCZOS)
    alpha = small.getchannel("A")
    colours = ImageEnhance.Brightness(small.convert("RGB")).enhance(random.uniform(0.65, 1.1))
    margin = side // 16
    left, top = (int(random.integers(margin, side - margin - width)) for _ in range(2))
    blur = ImageFilter.GaussianBlur(random.uniform(0.2, 0.7) * side / _SIDE)
    image.paste(colours.filter(blur), (left, top), alpha.filter(blur))
    mask.paste(number, (left, top), Image.fromarray(np.where(np.asarray(alpha) > 127, 255, 0).astype(np.uint8)))


def _sign(label: str, random: np.random.Generator) -> Image.Image:
    """A sign of a class on nothing, seen askew."""
    canvas = Image.new("RGBA", (_CANVAS, _CANVAS), (0, 0, 0, 0))
    draw = ImageDraw.Draw(canvas)
    whole = [(0.04, 0.04), (0.96, 0.96)]
    match label:
        case "ahead" | "left":
            draw.ellipse(_scaled(whole), fill=_BLUE)
            arrow = [(0.18, 0.5), (0.46, 0.2), (0.46, 0.4), (0.82, 0.4), (0.82, 0.6), (0.46, 0.6), (0.46, 0.8)]
            draw.polygon(_scaled(arrow if label == "left" else [(y, x) for x, y in arrow]), fill=_WHITE)
        case _:
            draw.polygon(_scaled([(0.5, 0.03), (0.98, 0.92), (0.02, 0.92)]), fill=_RED)
            draw.polygon(_scaled([(0.5, 0.2), (0.84, 0.83), (0.16, 0.83)]), fill=_WHITE)
            if label == "danger":
                draw.line(_scaled([(0.5, 0.36), (0.5, 0.64)]), fill=_BLACK, width=_CANVAS // 13)
                draw.ellipse(_scaled([(0.45, 0.7), (0.55, 0.8)]), fill=_BLACK)
            else:
                draw.line(_scaled([(0.36, 0.5), (0.64, 0.78)]), fill=_BLACK, width=_CANVAS // 13)
                draw.line(_scaled([(0.64, 0.5), (0.36, 0.78)]), fill=_BLACK, width=_CANVAS // 13)
    askew = random.uniform(-0.08, 0.08, size=(4, 2))
    quad = [float(value) for corner in np.array(_CORNERS) + askew for value in corner * _CANVAS]
    return canvas.transform(canvas.size, Image.Transform.QUAD, quad, Image.Resampling.BICUBIC)


def _scaled(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points of the unit square on the canvas, with room around to be turned."""
    return [((0.1 + 0.8 * x) * _CANVAS, (0.1 + 0.8 * y) * _CANVAS) for x, y in points]
