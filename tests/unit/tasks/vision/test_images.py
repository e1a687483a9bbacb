"""Images: found within a dataset only, refused by their headers, decoded as the model's own processor would."""

import io
import json
import shutil
import struct
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image
from tiny_vision import save_vision_model, stored

from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.formats.image_folder import ImageFile, open_image_folder
from hf_accum.data.formats.rows import BadRow
from hf_accum.data.source import good_rows, open_source
from hf_accum.distributed.ranks import OneRank
from hf_accum.tasks.vision.augmentation import UNCHANGED, Augmentation, Augmenter
from hf_accum.tasks.vision.data import open_labelled_images, open_masked_images
from hf_accum.tasks.vision.images import Picture, open_image, open_mask, open_rgb, picture_of, size_of
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
        (7, "7 is a int, neither an image nor the path of one"),
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
        (png_header(12_000, 12_000), "too many pixels|more than the 89,478,485 of `max_image_pixels`"),
        (png_header(60_000, 60_000), "too many pixels"),
    ],
)
def test_a_damaged_image_and_a_bomb_are_bad_rows(content: bytes, reason: str) -> None:
    with pytest.raises(BadRow, match=f"field 'image': .*{reason}"):
        open_rgb(Picture("image", content))


def test_the_most_pixels_are_a_flag() -> None:
    picture = Picture("image", stored(noise(40, 30)))
    assert open_rgb(picture, most_pixels=1200).size == (40, 30)
    with pytest.raises(BadRow, match=r"has 40 x 30 pixels, more than the 1,199 of `max_image_pixels`"):
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


def test_an_augmentation_depends_on_seed_pass_and_example_only() -> None:
    augmenter = Augmenter(seed=3, crop_scale=0.5, mirror=True, color_jitter=0.3)
    drawn = {(epoch, name): augmenter.draw(epoch, name) for epoch in range(3) for name in ("0:1", "0:2", "1:1")}
    assert len(set(drawn.values())) == 9
    for key in sorted(drawn, reverse=True):
        assert augmenter.draw(*key) == drawn[key]
    assert Augmenter(4, 0.5, True, 0.3).draw(0, "0:1") != drawn[0, "0:1"]
    many = [augmenter.draw(0, str(index)) for index in range(300)]
    areas = [(a.box[2] - a.box[0]) * (a.box[3] - a.box[1]) for a in many]
    assert 0.5 <= min(areas) < 0.6
    assert all(0 <= a.box[0] < a.box[2] <= 1 and 0 <= a.box[1] < a.box[3] <= 1 for a in many)
    assert 0.4 < np.mean([a.mirrored for a in many]) < 0.6
    assert all(0.7 <= factor <= 1.3 for a in many for factor in (a.brightness, a.contrast, a.colour))
    assert not any(Augmenter(3, 0.5, False, 0.3).draw(0, str(index)).mirrored for index in range(100))


def test_image_and_mask_are_changed_alike() -> None:
    """A mask that has the image's own values is found where these are."""
    values = np.repeat(np.repeat(np.arange(64, dtype=np.uint8).reshape(8, 8), 8, 0), 8, 1)
    mask = Image.fromarray(values.astype(np.int32))
    image = Image.fromarray(values).convert("RGB")
    augmentation = Augmentation(box=(0.125, 0.25, 0.875, 1.0), mirrored=True)
    seen = np.asarray(augmentation.image(image, 48, resample=0))[..., 0]
    assert np.array_equal(seen, np.asarray(augmentation.mask(mask, 48)))
    assert np.array_equal(seen, values[16:, 8:56][:, ::-1])


def write_folder(folder: Path) -> None:
    for number in range(6):
        path = folder / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stored(noise(seed=number)))


def test_a_folder_of_folders_has_a_class_for_each(tmp_path: Path) -> None:
    write_folder(tmp_path / "train")
    source = open_source(str(tmp_path), "train")
    rows = [row for shard in range(source.num_shards) for _, row in source.read(shard, 0)]
    assert len(rows) == 6
    for row in rows:
        assert isinstance(row, dict)
        assert isinstance(row["image"], ImageFile)
        assert row["label"] == ("cat", "dog")[int(Path(row["image"].name).stem) % 2]
        assert row["image"].name == f"train/{row['label']}/{Path(row['image'].path).name}"


def test_an_image_that_is_changed_while_it_is_read_ends_the_run(tmp_path: Path) -> None:
    write_folder(tmp_path)
    source = open_source(str(tmp_path), "train")
    ((_, row),) = source.read(0, 0)
    assert isinstance(row, dict)
    Path(row["image"].path).write_bytes(stored(noise(seed=99))[:-1])
    with pytest.raises(ValueError, match="was changed while the run reads it"):
        row["image"].read("image", 10**6)


def test_metadata_names_images_of_its_folder_only(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "outside.png").write_bytes(stored(noise()))
    for name in ("a", "b", "a-mask"):
        (folder / f"{name}.png").write_bytes(stored(noise()))
    lines = [
        {"file_name": "a.png", "mask_file_name": "a-mask.png", "weather": "rain"},
        {"file_name": "../outside.png", "mask_file_name": "a-mask.png"},
        {"file_name": "b.png", "mask_file_name": None},
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = open_source(str(folder), "train")
    rows = [row for shard in range(source.num_shards) for _, row in source.read(shard, 0)]
    good = [row for row in rows if isinstance(row, dict)]
    bad = sorted(str(row) for row in rows if isinstance(row, BadRow))
    assert [(row["image"].name, row["mask"].name, row["weather"]) for row in good] == [
        ("a.png", "a-mask.png", "rain")
    ]
    assert bad == [
        "field 'file_name': metadata.jsonl, row 2: '../outside.png' is no image of this dataset",
        "field 'mask_file_name': metadata.jsonl, row 3: None is no image of this dataset",
    ]


def rows_of(folder: Path, split: str = "train") -> list[Any]:
    """All rows, good and bad, in order."""
    source = open_source(str(folder), split)
    return [row for shard in range(source.num_shards) for _, row in source.read(shard, 0)]


def test_a_damaged_image_of_one_split_leaves_that_of_the_same_name_in_the_other(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_folder(data / "train")
    write_folder(data / "validation")
    (data / "validation" / "cat" / "2.png").write_bytes(b"broken")
    config = RecipeConfig(num_epochs=1, eval_split="validation", on_bad_row="skip")
    how: Any = {"image_column": "image", "label_column": "label", "label_names": ()}
    opened = open_labelled_images(str(data), OneRank(), config, **how)
    assert [reason.partition(" is damaged")[0] for reason in opened.bad_rows] == [
        "field 'image': validation/cat/2.png"
    ]
    assert (opened.num_train, opened.num_held_out) == (6, 5)
    used: dict[str, int] = {}
    for name, source in (("train", opened.source), ("validation", opened.eval_source)):
        shards = range(source.num_shards)
        rows = [
            good for shard in shards for good in good_rows(source, shard, 0, opened.pictures.of, "skip", Counter())
        ]
        used[name] = len(rows)
    assert used == {"train": 6, "validation": 5}


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_metadata_of_any_format_is_in_one_order_wherever_it_lies(tmp_path: Path, form: str) -> None:
    """Also where it names images by way of the folder above."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = tmp_path / "data"
    (data / "train" / "images").mkdir(parents=True)
    (data / "train" / "notes").mkdir()
    for number in range(30):
        (data / "train" / "images" / f"{number}.png").write_bytes(stored(noise(4, 4, number)))
    lines = [{"file_name": f"../images/{number}.png", "label": "ab"[number % 2]} for number in range(30)]
    metadata = data / "train" / "notes" / f"metadata.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(lines), metadata)
    elif form == "csv":
        metadata.write_text("file_name,label\n" + "".join(f"{line['file_name']},{line['label']}\n" for line in lines))
    else:
        metadata.write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.copytree(data, tmp_path / "elsewhere" / "copy")
    first, again = rows_of(data), rows_of(tmp_path / "elsewhere" / "copy")
    assert [row["image"].name for row in first] == [row["image"].name for row in again]
    assert sorted(row["label"] for row in first) == ["a"] * 15 + ["b"] * 15
    assert {row["image"].name for row in first} == {f"train/images/{number}.png" for number in range(30)}


def test_metadata_that_cannot_be_read_or_is_there_twice_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,label,label\n")
    with pytest.raises(ValueError, match=r"metadata.csv cannot be read .*two columns have the same name"):
        open_source(str(tmp_path), "train")
    (tmp_path / "metadata.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"has metadata in several formats \(metadata.csv, metadata.jsonl\)"):
        open_source(str(tmp_path), "train")


def test_an_image_beside_the_folders_of_classes_is_a_bad_row(tmp_path: Path) -> None:
    write_folder(tmp_path / "train")
    (tmp_path / "train" / "stray.png").write_bytes(stored(noise()))
    (tmp_path / "train" / "cat" / "thumbnails").mkdir()
    (tmp_path / "train" / "cat" / "thumbnails" / "0.png").write_bytes(stored(noise()))
    rows = rows_of(tmp_path)
    assert sorted(str(row) for row in rows if isinstance(row, BadRow)) == [
        f"field 'label': train/{name} is in no folder of a class: these have to be equally deep"
        for name in ("cat/thumbnails/0.png", "stray.png")
    ]
    assert Counter(row["label"] for row in rows if isinstance(row, dict)) == {"cat": 3, "dog": 3}


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


class Flaky(fsspec.AbstractFileSystem):
    """A network: its file can be read after so many failures."""

    protocol = "flaky"
    num_failures = 0
    error: Exception = ConnectionError("reset by peer")

    def _open(self, *arguments: Any, **named: Any) -> Any:
        if Flaky.num_failures:
            Flaky.num_failures -= 1
            raise Flaky.error
        return io.BytesIO(stored(noise()))


def test_a_network_that_fails_is_no_bad_image(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    folder = open_image_folder("me/signs", ["flaky://me/signs@abc/cat/0.png"])
    ((_, row),) = folder.read(0, 0)
    assert isinstance(row, dict)
    assert row["image"].name == "cat/0.png"
    picture = picture_of(row, "image")
    monkeypatch.setattr(Flaky, "num_failures", 2)
    assert picture.read() == stored(noise())
    assert slept == [1, 4]
    for error in (Flaky.error, FileNotFoundError("gone"), PermissionError("a token is needed")):
        monkeypatch.setattr(Flaky, "error", error)
        monkeypatch.setattr(Flaky, "num_failures", 5)
        with pytest.raises(ValueError, match=r"cat/0.png: cannot be read \(") as raised:
            picture.read()
        assert not isinstance(raised.value, BadRow)


def test_a_local_file_that_is_gone_is_a_bad_row_and_a_disk_that_fails_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadRow, match=r"field 'image': a\.png cannot be read"):
        Picture("image", ImageFile("a.png", str(tmp_path / "a.png"))).read()

    def failing(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("hf_accum.data.formats.image_folder.opened", failing)
    with pytest.raises(ValueError, match=r"a.png: cannot be read \(OSError: .*Input/output error") as raised:
        Picture("image", ImageFile("a.png", str(tmp_path / "a.png"))).read()
    assert not isinstance(raised.value, BadRow)


def test_an_image_by_its_path_that_is_changed_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(stored(noise()))
    picture = picture_of({"image": "a.png"}, "image", tmp_path)
    (tmp_path / "a.png").write_bytes(stored(noise(seed=1))[:-1])
    with pytest.raises(ValueError, match=r"a\.png: was changed while the run reads it"):
        open_rgb(picture)


def test_images_that_metadata_does_not_name_are_counted(tmp_path: Path) -> None:
    for name in ("a", "b", "a-mask", "c", "d"):
        (tmp_path / f"{name}.png").write_bytes(stored(noise(4, 4)))
    lines = [{"file_name": f"{name}.png", "mask_file_name": "a-mask.png"} for name in "ab"]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = RecipeConfig(max_steps=1, num_epochs=None)
    how: Any = {"image_column": "image", "mask_column": "mask", "label_names": ("no", "yes"), "ignore_index": 255}
    opened = open_masked_images(str(tmp_path), OneRank(), config, **how)
    assert opened.notes == ["left out: 2 images that no good row of metadata names (c.png)"]


def test_metadata_above_the_folders_of_splits_is_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_folder(tmp_path / split)
    (tmp_path / "metadata.csv").write_text("file_name,label\ntrain/cat/0.png,a\n")
    with pytest.raises(ValueError, match=r"its metadata.csv lies above the folders of the splits"):
        open_source(str(tmp_path), "train")
