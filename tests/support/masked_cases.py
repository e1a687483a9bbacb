"""Datasets of images with masks."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tiny_vision import stored

from hf_accum.config.recipe import RecipeConfig
from hf_accum.distributed.ranks import OneRank
from hf_accum.tasks.vision.data import MaskedImages, open_masked_images


def mask_of(value: int, width: int = 32, height: int = 32, upper: int | None = None) -> bytes:
    """Of one value, or with another in its upper half."""
    values = np.full((height, width), value, np.uint8)
    if upper is not None:
        values[: height // 2] = upper
    return stored(Image.fromarray(values))


def masked(folder: Path, masks: list[bytes], sizes: list[tuple[int, int]], **flags: Any) -> MaskedImages:
    """A dataset of images of these sizes with these masks, opened."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    rows = [
        {"image": stored(Image.new("RGB", size, (index, 0, 0))), "mask": mask, "group": str(index)}
        for index, (size, mask) in enumerate(zip(sizes, masks, strict=True))
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    named: dict[str, Any] = {
        "label_names": flags.pop("label_names", ()),
        "earlier_labels": flags.pop("earlier_labels", ()),
        "ignore_index": flags.pop("ignore_index", 255),
    }
    config = RecipeConfig(**{"num_epochs": 1, "max_steps": 1, "eval_fraction": 0.3, "group_column": "group"} | flags)
    return open_masked_images(str(folder), OneRank(), config, image_column="image", mask_column="mask", **named)
