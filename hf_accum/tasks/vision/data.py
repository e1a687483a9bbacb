"""A dataset of images with a class or a mask each: opened, and read once for what has to be known before training."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hf_accum.config.datasets import Datasets, parts_of
from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.formats.image_folder import ImageFile
from hf_accum.data.formats.rows import BadRow, Row
from hf_accum.data.source import Source, in_parts, open_source
from hf_accum.data.split import SplitData, open_split
from hf_accum.data.survey import Observed
from hf_accum.distributed.ranks import Ranks
from hf_accum.errors import UserError
from hf_accum.tasks.labels import LabelColumn, found_names, names_of_classes
from hf_accum.tasks.vision.images import (
    MOST_PIXELS,
    Colours,
    Picture,
    check_numbers,
    check_size,
    open_image,
    open_mask,
    picture_of,
)
from hf_accum.tasks.vision.looks import Looks, Seen

_SMALL = (32, 32)  # to which a JPEG is decoded where it only has to be seen whether it can be
_MOST_CLASSES = 256
_MANY_CLASSES, _FAR_MORE = 64, 10  # of so many classes, one in so many at least has to occur
T = TypeVar("T")


@dataclass(frozen=True)
class Pictures:
    """The images in a column. `bad` are those that cannot be used, by their keys, as one pass over all has found.

    Of masks, `bad` also has pairs: a mask that is bad for one image may be good for another.
    """

    column: str
    root: Path | None = None
    most_pixels: int = MOST_PIXELS
    bad: Mapping[str, str] = field(default_factory=dict, repr=False)
    seen: bool = False
    """Whether there was such a pass."""

    @staticmethod
    def in_dataset(dataset: str, column: str, most_pixels: int = MOST_PIXELS) -> "Pictures":
        """Those of a local folder or file, whose rows may have paths in there, or of any other dataset."""
        root = Path(dataset) if os.path.isdir(dataset) else Path(dataset).parent if os.path.isfile(dataset) else None
        return Pictures(column, root, most_pixels)

    def of(self, row: Row, beside: Picture | None = None) -> Picture:
        """That of a row, not decoded; of a mask, the one `beside` its image.

        Raises:
            BadRow: if there is none, or it is known to be bad, be it by itself or beside that image.
        """
        picture = picture_of(row, self.column, self.root)
        if self.bad:
            reason = self.bad.get(picture.key)
            if reason is None and beside is not None:
                reason = self.bad.get(_pair(beside, picture))
            if reason is not None:
                raise BadRow(self.column, reason)
        return picture


@dataclass(frozen=True, kw_only=True)
class ImageData(SplitData):
    """The dataset. Without a column of groups each image is one."""

    pictures: Pictures
    seen: Seen = field(default_factory=Seen)

    @property
    def notes(self) -> list[str]:
        """What was seen when it was opened, and read."""
        of_sources = dict.fromkeys([*self.source.notes, *self.eval_source.notes])
        return [*of_sources, *super().notes, *self.seen.notes]

    def group_of(self, row: Row) -> int:
        """The hash of a row's group."""
        if self.group_column == self.pictures.column:
            row = {self.group_column: picture_of(row, self.pictures.column, self.pictures.root).key}
        return super().group_of(row)


@dataclass(frozen=True, kw_only=True)
class LabelledImages(ImageData):
    """Images with a class each."""

    labels: LabelColumn

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in order."""
        return self.labels.names

    @property
    def notes(self) -> list[str]:
        """Also labels that no row to train on has, as far as they were counted."""
        return [
            *super().notes,
            *self.labels.notes,
            *self.notes_of_missing("no row to train on has the label", self.labels.names),
        ]


@dataclass(frozen=True, kw_only=True)
class MaskedImages(ImageData):
    """Images with a mask each, whose pixels are numbers of classes; `ignore_index` is the number of none."""

    masks: Pictures
    names: tuple[str, ...]
    ignore_index: int

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in order."""
        return self.names

    @property
    def notes(self) -> list[str]:
        """Also classes that no pixel to train on has, as far as they were counted."""
        return [*super().notes, *self.notes_of_missing("no pixel to train on is of the class", self.names)]


def open_labelled_images(
    dataset: Datasets,
    ranks: Ranks,
    config: RecipeConfig,
    *,
    image_column: str,
    label_column: str,
    label_names: tuple[str, ...],
    earlier_labels: tuple[str, ...] = (),
    most_pixels: int = MOST_PIXELS,
    colours: Colours = Colours(),  # noqa: B008 (frozen)
) -> LabelledImages:
    """Open the dataset, and read it once, each image too, unless nothing has to be known of it.

    Labels of a run that this one starts from, `earlier_labels`, keep their places: new ones come behind them.

    Raises:
        UserError: for a dataset, column or row that cannot be used.
    """
    opened, images = _opened(dataset, config, [image_column], [label_column], most_pixels)
    class_names = opened.source.class_names.get(label_column, ())
    names = label_names or names_of_classes(class_names, earlier_labels, label_column)
    labels = LabelColumn(label_column, "single_label_classification", names, "", class_names)
    data = LabelledImages(labels=labels, pictures=images, **vars(opened))
    if not _needs_pass(config, names):
        return data
    bad: dict[str, str] = {}
    seen = Looks(colours)

    def observe(row: Row) -> Observed:
        keys, picture = labels.keys(row), images.of(row)
        seen.add(_noting(bad, picture.key, lambda: open_image(picture, most_pixels, _SMALL)))
        content = _digest(picture)
        return Observed(keys, (content, keys), content.encode())

    data = data.surveyed(observe, ranks, config.on_bad_row, sample_size=0)
    names = names or found_names([*data.label_counts, *data.held_out_label_counts], earlier_labels, label_column)
    pictures = replace(images, bad=_of_all_ranks(bad, ranks), seen=True)
    return replace(data, labels=replace(labels, names=names), pictures=pictures, seen=seen.of_all_ranks(ranks))


def open_masked_images(
    dataset: Datasets,
    ranks: Ranks,
    config: RecipeConfig,
    *,
    image_column: str,
    mask_column: str,
    label_names: tuple[str, ...],
    ignore_index: int,
    earlier_labels: tuple[str, ...] = (),
    most_pixels: int = MOST_PIXELS,
    colours: Colours = Colours(),  # noqa: B008 (frozen)
) -> MaskedImages:
    """Open the dataset, and read it once, each image and mask too, unless nothing has to be known of it.

    Where no names are given, the classes are those of a run that this one starts from, `earlier_labels`: if they are
    numbers, higher ones in the masks are new classes; names of new ones the masks do not tell.

    Raises:
        UserError: for a dataset, column or row that cannot be used.
    """
    if not label_names and earlier_labels != tuple(map(str, range(len(earlier_labels)))):
        label_names = earlier_labels
    opened, images = _opened(dataset, config, [image_column, mask_column], [], most_pixels)
    masks = replace(images, column=mask_column)
    data = MaskedImages(pictures=images, masks=masks, names=label_names, ignore_index=ignore_index, **vars(opened))
    if not _needs_pass(config, label_names):
        return data
    bad: dict[str, str] = {}
    seen = Looks(colours)
    bad_masks: dict[str, str] = {}
    most = len(label_names) or _MOST_CLASSES

    def observe(row: Row) -> Observed:
        picture, mask = images.of(row), masks.of(row)
        image = _noting(bad, picture.key, lambda: open_image(picture, most_pixels))
        seen.add(image)
        opened = _noting(bad_masks, mask.key, lambda: open_mask(mask, most_pixels))
        _noting(bad_masks, _pair(picture, mask), lambda: check_size(mask, opened.size, image.size))

        def numbers() -> list[int]:
            found = np.unique(np.asarray(opened))
            check_numbers(mask, found, ignore_index, most, are_named=bool(label_names))
            return [number for number in found.tolist() if number != ignore_index]

        keys = tuple(map(str, _noting(bad_masks, mask.key, numbers)))
        content = _digest(picture)
        return Observed(keys, (content, _digest(mask)), content.encode())

    data = data.surveyed(observe, ranks, config.on_bad_row, sample_size=0)
    to_train_on = [(data.label_counts, "to train on")] if data.num_train else []
    for counts, part in (*to_train_on, (data.held_out_label_counts, "that are held out")):
        if not counts:
            raise UserError(
                f"column {mask_column!r}: no pixel of the masks {part} has a class, all are `ignore_index` "
                f"{ignore_index}: there is nothing to learn or to measure; give masks with classes, or another number"
            )
    if to_train_on and len(data.label_counts) < 2:
        (only,) = data.label_counts
        raise UserError(
            f"column {mask_column!r}: the masks to train on have no class but {only}, and at least 2 are needed "
            f"(a pixel of `ignore_index` {ignore_index} has none: if it is a class here, store it as a number below "
            f"{len(label_names) or _MOST_CLASSES - 1}, as 0 and 1 in the place of 0 and {ignore_index})"
        )
    found = {*data.label_counts, *data.held_out_label_counts, *earlier_labels}
    names = label_names or _numbered(found, mask_column, ignore_index)
    return replace(
        data,
        names=names,
        label_counts={names[int(key)]: number for key, number in data.label_counts.items()},
        held_out_label_counts={names[int(key)]: number for key, number in data.held_out_label_counts.items()},
        pictures=replace(images, bad=_of_all_ranks(bad, ranks), seen=True),
        masks=replace(masks, bad=_of_all_ranks(bad_masks, ranks), seen=True),
        seen=seen.of_all_ranks(ranks),
    )


def _numbered(keys: set[str], column: str, ignore_index: int) -> tuple[str, ...]:
    """The classes from 0 to the highest number in the masks, without names.

    Raises:
        UserError: where that is far more than occur: the numbers are shades of grey, say, or bits.
    """
    found = sorted(map(int, keys))
    highest = found[-1]
    if highest >= _MANY_CLASSES and highest + 1 > _FAR_MORE * len(found):
        some = ", ".join(map(str, found[:8])) + (", ..." if len(found) > 8 else "")
        ignored = f"; or, if {highest} is no class, give `ignore_index {highest}`" if len(found) > 2 else ""
        raise UserError(
            f"column {column!r}: the masks have {len(found)} different numbers ({some}; `ignore_index` {ignore_index}"
            f" aside), which by the highest would be {highest + 1} classes, nearly all without a pixel: store the "
            f"classes as 0 to {len(found) - 1}{ignored}; or give the names of all {highest + 1} by `labels`"
        )
    return tuple(map(str, range(highest + 1)))


def _opened(
    dataset: Datasets, config: RecipeConfig, image_columns: list[str], columns: list[str], most_pixels: int
) -> tuple[SplitData, Pictures]:
    group_column = config.group_column or image_columns[0]
    parts = parts_of(dataset)
    place = parts[0].location if len(parts) == 1 else ""
    opener = open_source if len(parts) == 1 else partial(_with_own_files, image_columns=image_columns)
    columns = [*image_columns, *columns]
    opened = open_split(dataset, columns, config, group_column=group_column, opener=opener)
    return opened, Pictures.in_dataset(place, image_columns[0], most_pixels)


def _with_own_files(place: str, split: str, *, image_columns: list[str], **how: Any) -> Source:
    """One of several datasets: rows have the files of images in the place of paths, by names that no other has."""
    root = Pictures.in_dataset(place, image_columns[0], MOST_PIXELS).root

    def row_of(row: Row) -> list[Row]:
        stored = {column: picture_of(row, column, root).stored for column in image_columns}
        named = {
            column: replace(image, name=f"{place.rstrip('/')}/{image.name}")
            for column, image in stored.items()
            if isinstance(image, ImageFile)
        }
        return [{**row, **named}]

    return in_parts(open_source(place, split, **how), row_of, 1)


def _needs_pass(config: RecipeConfig, names: tuple[str, ...]) -> bool:
    """Only a pass tells the names, the number of examples, and which images cannot be decoded."""
    return not names or config.num_epochs is not None or config.on_bad_row == "skip"


def _pair(picture: Picture, mask: Picture) -> str:
    """The key of an image and its mask together."""
    return f"{picture.key}\0{mask.key}"


def _noting(bad: dict[str, str], key: str, look: Callable[[], T]) -> T:
    """What `look` finds; where that is a bad image, it is noted by the key."""
    try:
        return look()
    except BadRow as error:
        bad[key] = error.reason
        raise


def _of_all_ranks(bad: dict[str, str], ranks: Ranks) -> dict[str, str]:
    return {key: reason for of_rank in ranks.gather_objects(bad) for key, reason in of_rank.items()}


def _digest(picture: Picture) -> str:
    """Of an image's content."""
    if isinstance(picture.stored, ImageFile):
        return blake2b(picture.read(), digest_size=16).hexdigest()
    return picture.key
