"""A tiny vision model with BatchNorm and images small enough to train on in milliseconds."""

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn
from transformers import EfficientNetConfig, EfficientNetImageProcessorPil, EfficientNetModel

from hf_accum.tasks.labels import LabelColumn
from hf_accum.tasks.vision.data import LabelledImages, MaskedImages, Pictures

SIDE = 32
COLOURS = {"blue": (20, 40, 200), "green": (20, 180, 60), "red": (200, 30, 30)}
CLASSES = tuple(COLOURS)
_SCALE = 0.05  # of the usual widths

TINY: dict[str, Any] = {
    "width_coefficient": _SCALE,
    "depth_coefficient": 1.0,
    "depth_divisor": 4,
    "kernel_sizes": [3, 3, 5],
    "in_channels": [32, 80, 160],
    "out_channels": [80, 160, 320],
    "strides": [1, 2, 2],
    "num_block_repeats": [1, 2, 1],
    "expand_ratios": [1, 2, 2],
    "hidden_dim": 64,
    "image_size": SIDE,
    "initializer_range": 0.3,
}


def save_vision_model(folder: Path) -> None:
    """A random EfficientNet without a head, whose BatchNorm layers have statistics of their own."""
    torch.manual_seed(0)
    model = EfficientNetModel(EfficientNetConfig(**TINY))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    model.save_pretrained(str(folder))
    processor = EfficientNetImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4], include_top=False
    )
    processor.save_pretrained(str(folder))


def stored(image: Image.Image, format_name: str = "PNG") -> bytes:
    """The bytes of an image's file."""
    buffer = io.BytesIO()
    image.save(buffer, format_name)
    return buffer.getvalue()


def draw_row(draw: random.Random) -> dict[str, Any]:
    """A grey image with a square of its class's colour, and a mask of it with a border that counts for nothing."""
    label = draw.choice(CLASSES)
    width, height = draw.randint(30, 50), draw.randint(30, 50)
    image = Image.new("RGB", (width, height), (draw.randint(60, 180),) * 3)
    mask = Image.new("L", image.size, 0)
    left, top, side = draw.randint(2, 14), draw.randint(2, 14), draw.randint(8, 14)
    box = (left, top, left + side, top + side)
    ImageDraw.Draw(image).rectangle(box, fill=COLOURS[label])
    ImageDraw.Draw(mask).rectangle(box, fill=1 + CLASSES.index(label), outline=255)
    return {
        "image": {"bytes": stored(image), "path": None},
        "mask": {"bytes": stored(mask), "path": None},
        "label": label,
    }


def save_images(folder: Path, sizes: tuple[int, ...] = (70, 8, 42)) -> None:
    """Parquet files of so many rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    for number, size in enumerate(sizes):
        rows = [draw_row(draw) for _ in range(size)]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"train-{number}.parquet")


def run(folder: Path, *flags: str, **named: Any) -> Path:
    """Run the recipe in this process, on the tiny model and data; returns the run's folder."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    from recipes.driving_images import main

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    model, data = folder / "model", folder / "data"
    if not model.is_dir():
        save_vision_model(model)
    if not data.is_dir():
        save_images(data, (40, 20))
    defaults = {"model": model, "dataset": data, "output_dir": folder / "run", "resolution": SIDE}
    defaults |= {"max_steps": 2, "micro_batch_size": 4, "resume": "never", "lora.rank": 2} | named
    main([*flags, *(f"--{name}={value}" for name, value in defaults.items())])
    return Path(str(defaults["output_dir"]))


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *flags: str, **named: Any) -> str:
    """What a run says that is refused."""
    with pytest.raises(SystemExit) as ended:
        run(folder, *flags, **named)
    assert ended.value.code == 2
    return capsys.readouterr().err


def labelled_images(names: tuple[str, ...]) -> LabelledImages:
    """A dataset of images with a class, of which no source is read."""
    return LabelledImages(labels=LabelColumn("label", "single_label_classification", names), **_OF_NO_SOURCE)


def masked_images(names: tuple[str, ...], **how: Any) -> MaskedImages:
    """A dataset of images with masks, of which no source is read; 255 has no class."""
    masks: dict[str, Any] = {"masks": Pictures("mask")} | how
    return MaskedImages(names=names, ignore_index=255, **_OF_NO_SOURCE, **masks)


_OF_NO_SOURCE: dict[str, Any] = {
    "source": None,
    "eval_source": None,
    "group_column": "image",
    "eval_fraction": 0.1,
    "pictures": Pictures("image"),
}


def noise(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def write_folder(folder: Path) -> None:
    for number in range(6):
        path = folder / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stored(noise(seed=number)))
