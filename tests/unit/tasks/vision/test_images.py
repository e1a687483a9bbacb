"""Images: found within a dataset only, refused by their headers, decoded as the model's own processor would."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_vision import save_vision_model, stored

from hf_accum.data.formats.rows import BadRow
from hf_accum.data.source import open_source
from hf_accum.tasks.vision.augmentation import UNCHANGED
from hf_accum.tasks.vision.images import (
    Colours,
    Picture,
    highest_of_16_bits,
    is_transparent,
    open_image,
    open_mask,
    open_rgb,
    picture_of,
    size_of,
)
from hf_accum.tasks.vision.inputs import ImageInputs, load_image_processor


def noise(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png_header(width: int, height: int) -> bytes:
    """A PNG of a size, without the pixels that it tells of."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def test_an_image_is_found_as_bytes_or_within_the_folder(tmp_path: Path) -> None:
    content = stored(noise())
    (tmp_path / "a.png").write_bytes(content)
    for value in (content, {"bytes": content, "path": "elsewhere.png"}, {"bytes": None, "path": "a.png"}, "a.png"):
        picture = picture_of({"image": value}, "image", tmp_path)
        assert np.array_equal(np.asarray(open_rgb(picture)), np.asarray(noise()))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "no image"),
        (float("nan"), "no image"),
        ({"bytes": None, "path": None}, "no image"),
        (7, "7 is of type int, neither an image nor the path of one"),
        ("../secret.png", "leads out of the dataset's folder"),
        ("/etc/passwd", "leads out of the dataset's folder"),
        ("link.png", "leads out of the dataset's folder"),
        ("missing.png", "there is no such file"),
        ("null\0.png", "is no path|there is no such file"),
    ],
)
def test_what_is_no_image_of_the_dataset_is_a_bad_row(tmp_path: Path, value: object, reason: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(stored(noise()))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(BadRow, match=reason):
        picture_of({"image": value}, "image", folder)


def test_a_path_in_a_dataset_of_the_hub_is_not_opened() -> None:
    with pytest.raises(BadRow, match="images of this dataset have to be in it, as bytes"):
        picture_of({"image": "a.png"}, "image", None)
    with pytest.raises(BadRow, match="no such column; the row has picture"):
        picture_of({"picture": b""}, "image", None)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"no image at all", "is damaged, or no image of JPEG, PNG"),
        (stored(noise())[:-500], "cannot be decoded"),
        (stored(noise(), "JPEG")[:-200], "cannot be decoded"),
        (stored(noise(), "ICO"), "is damaged, or no image of"),  # of a format that is not read
        (png_header(500, 400), "cannot be decoded"),
        (png_header(12_000, 12_000), "too many pixels|more than the 89,478,485 that are taken"),
        (png_header(60_000, 60_000), "too many pixels"),
    ],
)
def test_a_damaged_image_and_a_bomb_are_bad_rows(content: bytes, reason: str) -> None:
    with pytest.raises(BadRow, match=f"field 'image': .*{reason}"):
        open_rgb(Picture("image", content))


def test_the_most_pixels_are_a_flag() -> None:
    picture = Picture("image", stored(noise(40, 30)))
    assert open_rgb(picture, most_pixels=1200).size == (40, 30)
    with pytest.raises(
        BadRow, match=r"has 40 x 30 pixels, more than the 1,199 that are taken \(`max_image_pixels`\)"
    ):
        open_rgb(picture, most_pixels=1199)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "I;16", "CMYK"])
def test_images_of_any_mode_have_three_colours(mode: str) -> None:
    image = (
        Image.fromarray(np.asarray(noise().convert("L")).astype(np.uint16) * 257)
        if mode == "I;16"
        else noise().convert(mode)
    )
    opened = open_rgb(Picture("image", stored(image, "TIFF" if mode == "CMYK" else "PNG")))
    assert (opened.mode, opened.size) == ("RGB", (40, 30))
    assert np.asarray(opened).std() > 0


def test_exif_turns_an_image() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    buffer = io.BytesIO()
    noise(40, 30).save(buffer, "JPEG", exif=exif)
    assert open_rgb(Picture("image", buffer.getvalue())).size == (30, 40)


def test_a_mask_has_one_channel() -> None:
    numbers = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for image in (Image.fromarray(numbers), Image.fromarray(numbers).convert("P")):
        opened = open_mask(Picture("mask", stored(image)))
        assert np.asarray(opened).tolist() == numbers.tolist()
    with pytest.raises(BadRow, match=r"field 'mask': is a mask in RGB: it has to have one channel"):
        open_mask(Picture("mask", stored(noise())))


def test_pixels_are_those_of_the_model_s_own_processor(tmp_path: Path) -> None:
    """At the size of the run, which the processor saved beside the weights then has."""
    save_vision_model(tmp_path)
    processor = load_image_processor(str(tmp_path))
    inputs = ImageInputs.of(processor, 64)
    inputs.processor(processor).save_pretrained(str(tmp_path / "saved"))
    saved = load_image_processor(str(tmp_path / "saved"))
    for width, height in ((40, 30), (64, 64), (200, 90)):
        image = noise(width, height)
        expected = saved(image, return_tensors="np")["pixel_values"]
        found = inputs.pixel_values([Picture("image", stored(image))], [UNCHANGED]).numpy()
        assert found.shape == expected.shape == (1, 3, 64, 64)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_folder_without_a_processor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`model` .*: has to be .* with an image processor to load"):
        load_image_processor(str(tmp_path))


def write_folder(folder: Path) -> None:
    for number in range(6):
        path = folder / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stored(noise(seed=number)))


def rows_of(folder: Path, split: str = "train") -> list[Any]:
    """All rows, good and bad, in order."""
    source = open_source(str(folder), split)
    return [row for shard in range(source.num_shards) for _, row in source.read(shard, 0)]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8])
def test_the_size_by_the_header_is_that_of_the_image(form: str, orientation: int | None) -> None:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    buffer = io.BytesIO()
    noise(40, 30).save(buffer, form, exif=exif)
    picture = Picture("image", buffer.getvalue())
    assert size_of(picture) == open_image(picture).size


def grey_values() -> np.ndarray:
    return np.asarray(noise().convert("L"))


@pytest.mark.parametrize("values", [grey_values() / np.float32(255), grey_values().astype(np.int32)])
def test_values_of_32_bits_are_a_bad_row_rather_than_black(values: np.ndarray) -> None:
    picture = Picture("image", stored(Image.fromarray(values), "TIFF"))
    for opening in (open_image, open_rgb):
        with pytest.raises(BadRow, match=r"has values of 32 bits.*: store it with 8 or 16 bits"):
            opening(picture)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_values_of_16_bits_are_scaled_to_8(form: str) -> None:
    values = grey_values().astype(np.uint16) * 257
    content = b"P5 40 30 65535\n" + values.astype(">u2").tobytes()
    if form != "PPM":
        content = stored(Image.fromarray(values), form)
    assert np.array_equal(np.asarray(open_rgb(Picture("image", content)))[..., 0], grey_values())


@pytest.mark.parametrize("kind", ["<u2", ">u2", "<i4"])
def test_masks_may_have_numbers_of_16_and_of_32_bits(kind: str) -> None:
    numbers = np.arange(12).reshape(3, 4)
    picture = Picture("mask", stored(Image.fromarray(numbers.astype(kind)), "TIFF"))
    assert np.array_equal(np.asarray(open_mask(picture)), numbers)


def test_a_file_of_far_more_bytes_than_pixels_is_a_bad_row_and_not_read(tmp_path: Path) -> None:
    write_folder(tmp_path)
    with (tmp_path / "cat" / "0.png").open("r+b") as file:
        file.truncate(2**40)  # sparse: it takes no place on the disk, and all of the memory
    (row,) = (row for row in rows_of(tmp_path) if row["image"].name == "cat/0.png")
    with pytest.raises(BadRow, match=r"cat/0.png has 1,099,511,627,776 bytes, more than the 16,787,216 that"):
        open_rgb(picture_of(row, "image"), most_pixels=1250)


def png(values: Any) -> Picture:
    return Picture("image", stored(Image.fromarray(values), "PNG"))


def test_white_of_16_bits_is_where_it_is_set() -> None:
    """12 bits in the place of 16: each value by the definition, in floats."""
    values = np.array([[0, 1000, 2048], [4095, 5000, 65535]], np.uint16)
    for white in (65_535, 4095):
        seen = np.asarray(open_rgb(png(values), colours=Colours(white)))
        expected = np.minimum(np.floor(values.astype(float) * 255 / white + 1e-9), 255).astype(np.uint8)
        assert np.array_equal(seen, np.stack([expected] * 3, axis=-1))
    assert highest_of_16_bits(open_image(png(values))) == 65_535
    assert highest_of_16_bits(open_image(png(values.astype(np.uint8)))) is None


def test_what_is_transparent_has_the_ground_that_is_set() -> None:
    drawn = np.zeros((4, 4, 4), np.uint8)
    drawn[1, 1] = (0, 0, 0, 255)  # a black point on nothing
    for background, ground in (("black", 0), ("white", 255)):
        seen = np.asarray(open_rgb(png(drawn), colours=Colours(background=background)))
        assert seen[1, 1].tolist() == [0, 0, 0]
        assert seen[0, 0].tolist() == [ground] * 3
    assert is_transparent(open_image(png(drawn)))
    drawn[..., 3] = 255
    assert not is_transparent(open_image(png(drawn)))
    assert not is_transparent(open_image(png(drawn[..., :3])))
    palette = Image.fromarray(drawn[..., 0]).convert("P")
    for how in ({}, {"transparency": 0}):
        buffer = io.BytesIO()
        palette.save(buffer, "PNG", **how)
        assert is_transparent(open_image(Picture("image", buffer.getvalue()))) == bool(how)


def test_masks_with_losses_are_refused() -> None:
    mask = Image.fromarray(np.eye(16, dtype=np.uint8))
    buffer = io.BytesIO()
    mask.save(buffer, "TIFF", compression="jpeg")
    for content in (stored(mask, "JPEG"), buffer.getvalue()):
        with pytest.raises(BadRow, match=r"is a mask in JPEG, which changes the numbers of classes: .* as PNG"):
            open_mask(Picture("mask", content))
    assert np.array_equal(np.asarray(open_mask(Picture("mask", stored(mask, "PNG")))), np.eye(16))
