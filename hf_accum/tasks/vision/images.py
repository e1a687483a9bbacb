"""Images of rows: found, judged by their headers, decoded."""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from hf_accum.data.dataset_files import stamp_of
from hf_accum.data.formats.image_folder import ImageFile
from hf_accum.data.formats.rows import BadRow, is_missing, value_of
from hf_accum.errors import first_line, shown

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Those that are read. Some others that Pillow knows run a program."""

MOST_PIXELS = 89_478_485
"""Of an image, as Pillow has it: more are taken for a bomb, which fills the memory from a small file."""

_BYTES_PER_PIXEL = 8  # four colours of 16 bits, as they are
_OTHER_BYTES = 16 * 2**20  # of a file: what it tells beside its pixels

HIGHEST = 65_535
"""Of values of 16 bits."""

Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True)
class Picture:
    """An image as it is stored, in bytes or in a file: it is not decoded yet. `column` is where it stood."""

    column: str
    stored: bytes | ImageFile = field(repr=False)

    @property
    def key(self) -> str:
        """By which it is known: the name of its file, or a digest of its bytes."""
        if isinstance(self.stored, ImageFile):
            return self.stored.name
        return blake2b(self.stored, digest_size=16).hexdigest()

    def read(self, most_pixels: int = MOST_PIXELS) -> bytes:
        """Its bytes.

        Raises:
            BadRow: if there are none, or far more than so many pixels need.
            UserError: if its file was changed since, or cannot be read for now.
        """
        most_bytes = _BYTES_PER_PIXEL * most_pixels + _OTHER_BYTES
        content = self.stored if isinstance(self.stored, bytes) else self.stored.read(self.column, most_bytes)
        if not content:
            raise BadRow(self.column, f"{self.name}is empty")
        return content

    @property
    def name(self) -> str:
        """For messages; empty where it has no file."""
        return f"{self.stored.name} " if isinstance(self.stored, ImageFile) else ""


def picture_of(row: Mapping[str, Any], column: str, root: Path | None = None) -> Picture:
    """The image in a column: bytes, a dictionary with `bytes` (as `datasets` has it), or the path of a file.

    A path is relative to `root`, the dataset's folder, and does not lead out of it.

    Raises:
        BadRow: if there is no such column, no image in it, or a path that is not allowed.
    """
    value = value_of(row, column)
    path = None
    if isinstance(value, dict):
        value, path = value.get("bytes"), value.get("path")
    elif isinstance(value, str):
        value, path = None, value
    if isinstance(value, bytes | ImageFile):
        return Picture(column, value)
    if value is None and isinstance(path, str) and path:
        return Picture(column, _inside(path, column, root))
    if is_missing(value):
        raise BadRow(column, "no image (null)")
    raise BadRow(column, f"{shown(value)} is of type {type(value).__name__}, neither an image nor the path of one")


def _inside(path: str, column: str, root: Path | None) -> ImageFile:
    if root is None:
        raise BadRow(column, f"{shown(path)} is a path: images of this dataset have to be in it, as bytes")
    try:
        whole = (root / path).resolve()
        if not whole.is_relative_to(root.resolve()):
            raise BadRow(column, f"{shown(path)} leads out of the dataset's folder")
        if not whole.is_file():
            raise BadRow(column, f"{shown(path)}: there is no such file in the dataset's folder")
    except (OSError, ValueError) as error:  # too long a name, a null character
        if isinstance(error, BadRow):
            raise
        raise BadRow(column, f"{shown(path)} is no path ({first_line(error)})") from error
    return ImageFile(path, str(whole), stamp_of(str(whole)))


def open_image(picture: Picture, most_pixels: int = MOST_PIXELS, near: Size | None = None) -> Image.Image:
    """An image, decoded, as it is meant to be seen (turned as EXIF says).

    `near`: a JPEG may be decoded to a smaller size, which is no less than that.

    Raises:
        BadRow: if it is of another format, damaged, or has too many pixels, or values of 32 bits.
    """
    with _opened(picture, most_pixels) as image:
        if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):  # which has 16 bits
            raise BadRow(
                picture.column,
                f"{picture.name}has values of 32 bits, or with a sign, of which it is not known what is white: store "
                "it with 8 or 16 bits",
            )
        if near is not None:
            image.draft("RGB", near)
        image.load()
        return ImageOps.exif_transpose(image)


@contextmanager
def _opened(picture: Picture, most_pixels: int) -> Iterator[Image.Image]:
    """An image of which only the header is read; what goes wrong with it is a BadRow."""
    content = picture.read(most_pixels)
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height > most_pixels:
                raise BadRow(
                    picture.column,
                    f"{picture.name}has {width:,} x {height:,} pixels, more than the {most_pixels:,} that "
                    "are taken (`max_image_pixels`): a decompression bomb?",
                )
            yield image
    except (BadRow, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadRow(picture.column, f"{picture.name}has too many pixels ({first_line(error)})") from error
    except UnidentifiedImageError:
        raise BadRow(
            picture.column, f"{picture.name}is damaged, or no image of {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        ) from None
    except Exception as error:  # files of others can be wrong in any way
        raise BadRow(picture.column, f"{picture.name}cannot be decoded ({first_line(error)})") from error


@dataclass(frozen=True)
class Colours:
    """What images are to be seen as that leave it open: by what is transparent in them, or has 16 bits."""

    white: int = HIGHEST
    """The value of 16 bits that is white; higher ones are too."""
    background: str = "black"
    """What is seen where an image is transparent."""


def open_rgb(
    picture: Picture,
    most_pixels: int = MOST_PIXELS,
    near: Size | None = None,
    colours: Colours = Colours(),
) -> Image.Image:
    """An image in three colours, as `open_image` opens it.

    Raises:
        BadRow: as `open_image` does.
    """
    image = open_image(picture, most_pixels, near)
    if image.mode in ("P", "PA", "LA", "RGBA"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, colours.background), image)
    elif image.mode.startswith("I"):  # 16 bits
        scaled = np.asarray(image).astype(np.float64) / (colours.white / 255)
        image = Image.fromarray(scaled.clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def is_transparent(image: Image.Image) -> bool:
    """Whether a decoded image is transparent, in part, at any pixel."""
    if image.mode not in ("PA", "LA", "RGBA") and not (image.mode == "P" and "transparency" in image.info):
        return False
    lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
    return int(lowest) < 255  # type: ignore[arg-type] (of one channel they are numbers)


def highest_of_16_bits(image: Image.Image) -> int | None:
    """The highest value of a decoded image of 16 bits; None of another one."""
    return int(np.asarray(image).max()) if image.mode.startswith("I") else None


def open_mask(picture: Picture, most_pixels: int = MOST_PIXELS) -> Image.Image:
    """A mask: an image of one channel, whose values are numbers of classes.

    Raises:
        BadRow: if it has several, or a format with losses, and as `open_image` does.
    """
    with _opened(picture, most_pixels) as opened_mask:
        if opened_mask.format == "JPEG" or opened_mask.info.get("compression") == "jpeg":
            raise BadRow(
                picture.column,
                f"{picture.name}is a mask in JPEG, which changes the numbers of classes: it has to be stored without "
                "loss, as PNG, from where it was made",
            )
        opened_mask.load()
        image = ImageOps.exif_transpose(opened_mask)
    if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
        raise BadRow(picture.column, f"{picture.name}is a mask in {image.mode}: it has to have one channel")
    return Image.fromarray(np.asarray(image).astype(np.int32))


def size_of(picture: Picture, most_pixels: int = MOST_PIXELS) -> Size:
    """The size that `open_image` would give an image, by its header alone.

    Raises:
        BadRow: if it has none.
    """
    with _opened(picture, most_pixels) as image:
        width, height = image.size
        # Of TIFF it is that of the turned image; PNG would be decoded to look for what it does not have.
        may_be_turned = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
        is_turned = may_be_turned and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return (height, width) if is_turned else (width, height)


def check_size(mask: Picture, mask_size: Size, image_size: Size) -> None:
    """Refuse a mask of another size than its image.

    Raises:
        BadRow: naming both.
    """
    if mask_size != image_size:
        (width, height), (other_width, other_height) = mask_size, image_size
        raise BadRow(
            mask.column,
            f"{mask.name}has {width:,} x {height:,} pixels, and its image {other_width:,} x {other_height:,}: they "
            "have to be the same",
        )


def check_numbers(mask: Picture, values: np.ndarray, ignore_index: int, num_classes: int, *, are_named: bool) -> None:
    """Refuse a mask with a pixel of no class, but for that of `ignore_index`.

    Raises:
        BadRow: naming the number.
    """
    kept = values[values != ignore_index]
    if kept.size and not 0 <= kept.min() <= kept.max() < num_classes:
        wrong = int(kept.max() if kept.min() >= 0 else kept.min())
        known = f"of the {num_classes} classes of `labels`" if are_named else f"from 0 to {num_classes - 1}"
        way_out = " (a new class is named by `labels`, behind these)" if are_named and wrong >= num_classes else ""
        raise BadRow(
            mask.column,
            f"{mask.name}has the number {wrong}, none {known}, and not `ignore_index` {ignore_index}{way_out}",
        )
