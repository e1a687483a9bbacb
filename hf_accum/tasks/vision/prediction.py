"""Classes of images, or of their pixels, for rows without labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from hf_accum.accumulation.batch_parts import to_device
from hf_accum.accumulation.example import Example
from hf_accum.tasks.prediction import Told
from hf_accum.tasks.vision.augmentation import UNCHANGED
from hf_accum.tasks.vision.classification import ImageClassification, pixel_values
from hf_accum.tasks.vision.data import Pictures
from hf_accum.tasks.vision.images import Picture, open_rgb, size_of
from hf_accum.tasks.vision.segmentation import SemanticSegmentation

_MOST_ROWS = 256  # whose images may be in the rows themselves


@dataclass(frozen=True)
class ImagePredictor:
    """The class of an image as `prediction`, with the `probabilities` of all classes; or, of a model of pixels, the
    share of each class in it, and a mask of its own size, whose values are the numbers of the classes.
    """

    task: ImageClassification | SemanticSegmentation
    pictures: Pictures
    most_rows: int = _MOST_ROWS
    writes: bool = False

    @property
    def image_column(self) -> str:
        """Where a row's image is."""
        return self.pictures.column

    @property
    def adds(self) -> tuple[str, ...]:
        """The columns that `told` adds."""
        is_of_pixels = isinstance(self.task, SemanticSegmentation)
        return ("prediction", "mask_file" if is_of_pixels else "probabilities")

    def prepare(self, row: Mapping[str, Any]) -> Picture:
        """A row's image.

        Raises:
            BadRow: if there is none, or it cannot be decoded.
        """
        picture = self.pictures.of(row)
        open_rgb(picture, self.pictures.most_pixels, near=(32, 32))
        return picture

    def encode(self, rows: Sequence[tuple[str, Picture]]) -> list[Example]:
        """Examples of (id, image) rows."""
        length = self.task.max_length
        how = {"augmentation": UNCHANGED}
        return [Example(row_id, length, 1.0, {"picture": picture, **how}) for row_id, picture in rows]

    def forward(self, model: nn.Module, examples: Sequence[Example], length: int) -> list[Tensor]:
        """The logits of images, or of their pixels."""
        values = to_device(pixel_values(self.task.inputs, examples), next(model.parameters()).device)
        return list(model(pixel_values=values).logits.float().cpu())

    def told(self, example: Example, outputs: Sequence[Tensor]) -> Told:
        """The class by name, or a mask."""
        (logits,) = outputs
        assert self.task.data is not None
        if isinstance(self.task, ImageClassification):
            return Told(self.task.decisions.told(logits[None].numpy())(0))
        width, height = size_of(example.features["picture"], self.pictures.most_pixels)
        by_class = logits.movedim(-1, 0)[None]
        numbers = F.interpolate(by_class, (height, width), mode="bilinear", align_corners=False)[0].argmax(0)
        counts = torch.bincount(numbers.ravel(), minlength=len(self.task.data.class_names))
        shares = (counts / counts.sum()).double().tolist()
        by_name = {name: round(share, 6) for name, share in zip(self.task.data.class_names, shares, strict=True)}
        return Told({"prediction": by_name}, {"mask_file": Image.fromarray(numbers.numpy().astype(np.uint8))})
