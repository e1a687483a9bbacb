"""Datasets of images with masks: what one pass finds before the training."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from masked_cases import mask_of, masked
from PIL import Image
from tiny_vision import CLASSES, SIDE, masked_images, save_vision_model, write_folder

from hf_accum.accumulation.losses import CrossEntropy
from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.source import good_rows
from hf_accum.distributed.ranks import OneRank
from hf_accum.tasks.vision.augmentation import Augmenter
from hf_accum.tasks.vision.data import open_labelled_images, open_masked_images
from hf_accum.tasks.vision.images import Colours
from hf_accum.tasks.vision.inputs import ImageInputs
from hf_accum.tasks.vision.segmentation import SemanticSegmentation

NAMES = ("background", *CLASSES)


def segmentation(folder: Path, augmenter: Augmenter | None = None) -> SemanticSegmentation:
    from hf_accum.tasks.vision.inputs import load_image_processor

    save_vision_model(folder)
    inputs = ImageInputs.of(load_image_processor(str(folder)), SIDE)
    return SemanticSegmentation(masked_images(NAMES), CrossEntropy(), inputs, augmenter)


def test_a_mask_that_is_bad_for_one_image_is_good_for_others(tmp_path: Path) -> None:
    """What the survey counted is what the stream trains on and evaluates: empty masks are often the same bytes."""
    masks = [mask_of(0)] * 20 + [mask_of(0, upper=1)] * 10 + [mask_of(0)]
    data = masked(tmp_path / "data", masks, [(32, 32)] * 30 + [(40, 40)], on_bad_row="skip")
    reason = "field 'mask': has 32 x 32 pixels, and its image 40 x 40: they have to be the same"
    assert data.bad_rows == {reason: 1}
    task = replace(segmentation(tmp_path / "model"), data=data)
    bad_rows: Counter[str] = Counter()
    rows = list(good_rows(data.source, 0, 0, task.prepare, "skip", bad_rows))
    assert len(rows) == 30
    assert (data.num_train or 0) + (data.num_held_out or 0) == 30
    assert bad_rows == data.bad_rows


@pytest.mark.parametrize("eval_split", [None, "validation"])
def test_masks_without_any_class_are_refused_before_the_training(tmp_path: Path, eval_split: str | None) -> None:
    masks = [mask_of(255)] * 20
    if eval_split:
        masked(tmp_path / "data", [mask_of(0, upper=1)] * 20, [(32, 32)] * 20)
        masked(tmp_path / "other", masks, [(32, 32)] * 20, label_names=NAMES, num_epochs=None)
        (tmp_path / "other" / "train.parquet").rename(tmp_path / "data" / "validation.parquet")
        config = RecipeConfig(num_epochs=1, eval_split=eval_split)
        how: Any = {"image_column": "image", "mask_column": "mask", "label_names": (), "ignore_index": 255}
        with pytest.raises(ValueError, match="no pixel of the masks that are held out has a class, all are `ignore"):
            open_masked_images(str(tmp_path / "data"), OneRank(), config, **how)
        return
    with pytest.raises(ValueError, match="no pixel of the masks to train on has a class, all are `ignore_index` 255"):
        masked(tmp_path / "data", masks, [(32, 32)] * 20, label_names=NAMES)


def test_masks_of_one_class_are_refused_as_where_255_is_meant_as_one(tmp_path: Path) -> None:
    """A model that says nothing but that class would be perfect."""
    message = (
        r"the masks to train on have no class but 0, .* \(a pixel of `ignore_index` 255 has none: if it is a class"
    )
    for names in (("background", "road"), ()):
        with pytest.raises(ValueError, match=message):
            masked(tmp_path / str(len(names)), [mask_of(0, upper=255)] * 20, [(32, 32)] * 20, label_names=names)


def test_masks_of_0_and_255_are_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`ignore_index` 255 has none: .* as 0 and 1 in the place of 0 and 255\)"):
        masked(tmp_path / "data", [mask_of(0, upper=255)] * 20, [(32, 32)] * 20)


@pytest.mark.parametrize(
    ("numbers", "ways"),
    [
        ((0, 255), r"as 0 to 1; or give the names of all 256"),
        ((0, 128, 255), r"as 0 to 2; or, if 255 is no class, give `ignore_index 255`; or"),
        ((0, 127), r"as 0 to 1; or give the names of all 128"),
    ],
)
def test_masks_with_far_more_classes_than_occur_are_refused(
    numbers: tuple[int, ...], ways: str, tmp_path: Path
) -> None:
    masks = [mask_of(0, upper=number) for number in numbers[1:]] * 20
    sizes = [(32, 32)] * len(masks)
    with pytest.raises(ValueError, match=rf"have {len(numbers)} different numbers \(0, .*store the classes {ways}"):
        masked(tmp_path / "data", masks, sizes, ignore_index=254)
    names = tuple(map(str, range(numbers[-1] + 1)))
    assert masked(tmp_path / "named", masks, sizes, ignore_index=254, label_names=names).names == names


@pytest.mark.parametrize("numbers", [(0, 17, 53), tuple(range(0, 150, 9))])
def test_masks_of_sparse_numbers_are_not(numbers: tuple[int, ...], tmp_path: Path) -> None:
    """Of a few structures of an atlas, or of a small part of a dataset with many classes."""
    masks = [mask_of(0, upper=number) for number in numbers[1:]] * 10
    assert len(masked(tmp_path / "data", masks, [(32, 32)] * len(masks)).names) == numbers[-1] + 1


def test_images_of_12_bits_are_said(tmp_path: Path) -> None:
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "data" / "b").mkdir()
    for number in range(20):
        values = np.full((8, 8), 4095 - number, np.uint16)
        Image.fromarray(values).save(tmp_path / "data" / "ab"[number % 2] / f"{number}.png")
    how: Any = {"image_column": "image", "label_column": "label", "label_names": ()}
    config = RecipeConfig(eval_fraction=0.3)
    data = open_labelled_images(str(tmp_path / "data"), OneRank(), config, **how)
    assert any(note.startswith("20 images have 16 bits and no value above 4,095") for note in data.notes)
    data = open_labelled_images(str(tmp_path / "data"), OneRank(), config, **how, colours=Colours(white=4095))
    assert not any("16 bits" in note for note in data.notes)


def test_classes_are_said_by_their_names_also_those_without_a_pixel(tmp_path: Path) -> None:
    """Those of the run that this one starts from, where none are given."""
    data = masked(tmp_path / "data", [mask_of(0, upper=2)] * 20, [(32, 32)] * 20, label_names=NAMES)
    assert f"no pixel to train on is of the class {NAMES[1]}, {NAMES[3]}" in data.notes
    again = masked(tmp_path / "again", [mask_of(0, upper=2)] * 20, [(32, 32)] * 20, earlier_labels=NAMES)
    for notes in (data.notes, again.notes):
        (counted,) = [note for note in notes if note.startswith("examples with each label, ")]
        assert re.fullmatch(rf".*: {NAMES[0]}: \d+ \+ \d+, {NAMES[2]}: \d+ \+ \d+", counted)


def test_a_damaged_image_of_one_split_leaves_that_of_the_same_name_in_the_other(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_folder(data / "train")
    write_folder(data / "validation")
    (data / "validation" / "cat" / "2.png").write_bytes(b"broken")
    config = RecipeConfig(num_epochs=1, eval_split="validation", on_bad_row="skip", max_skipped_share=0.1)
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


@pytest.mark.parametrize("form", ["csv", "folder"])
def test_images_of_several_datasets_keep_their_own_names(tmp_path: Path, form: str) -> None:
    """Each dataset has a 0/0.png: that of the second one is damaged, and is bad alone."""
    places = []
    for number, name in enumerate(("ours", "public")):
        for index in range(12):
            file = tmp_path / name / str(index % 2) / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng([number, index]).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(file)
        if form == "csv":
            rows = "".join(f"{index % 2}/{index}.png,{index % 2}\n" for index in range(12))
            (tmp_path / name / "rows.csv").write_text(f"image,label\n{rows}")
        places.append(str(tmp_path / name / "rows.csv" if form == "csv" else tmp_path / name))
    (tmp_path / "public" / "0" / "0.png").write_bytes(b"no image")
    config = RecipeConfig(num_epochs=1, eval_fraction=0.25, on_bad_row="skip", max_skipped_share=0.1)
    how: dict[str, Any] = {"image_column": "image", "label_column": "label", "label_names": ()}
    data = open_labelled_images(f"{places[0]}:0.5,{places[1]}:0.5", OneRank(), config, **how)
    assert sum(data.bad_rows.values()) == 1
    pictures = [
        picture
        for shard in range(data.source.num_shards)
        for _, picture in good_rows(data.source, shard, 0, data.pictures.of, "skip", Counter())
    ]
    assert sorted(picture.key for picture in pictures) == sorted(
        f"{place}/{index % 2}/{index}.png"
        for place in places
        for index in range(12)
        if (place, index) != (places[1], 0)
    )
    assert len({picture.read() for picture in pictures}) == 23
    assert (data.num_train or 0) + (data.num_held_out or 0) == 23
