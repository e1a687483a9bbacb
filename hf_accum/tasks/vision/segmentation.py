"""Semantic segmentation: a class for each pixel of an image, and how well they are found."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_accum.accumulation.batch_parts import to_device
from hf_accum.accumulation.example import Example, Lengths
from hf_accum.accumulation.losses import IGNORE, Objective
from hf_accum.accumulation.splitting import Cutter
from hf_accum.data.formats.rows import BadRow
from hf_accum.data.stream import WindowStream
from hf_accum.distributed.ranks import Ranks
from hf_accum.errors import UserError
from hf_accum.evaluation.evaluate import check_best_metric
from hf_accum.evaluation.judge import Predicted
from hf_accum.evaluation.run_over import run_over
from hf_accum.models.usage import Usage
from hf_accum.tasks.preview import Line
from hf_accum.tasks.vision.augmentation import UNCHANGED, Augmentation, Augmenter
from hf_accum.tasks.vision.classification import Batch, pixel_values, preview_of_image
from hf_accum.tasks.vision.data import MaskedImages
from hf_accum.tasks.vision.images import Picture, check_numbers, check_size, open_mask, size_of
from hf_accum.tasks.vision.inputs import PATCHES, ImageInputs, made_up_images, num_patches


@dataclass(frozen=True)
class SemanticSegmentation:
    """One class for each pixel, but for those of `ignore_index`: an item is a pixel that has one.

    Images and masks stay as they are stored until a batch is made of them.
    """

    data: MaskedImages | None
    """None: for a plan, which has no images."""
    objective: Objective
    inputs: ImageInputs
    augmenter: Augmenter | None
    lengths: Lengths = field(default=PATCHES, init=False)
    num_parts: int = field(default=1, init=False)

    @property
    def max_length(self) -> int:
        """The length of each image, in patches."""
        return num_patches(self.inputs.resolution)

    def usage(self) -> Usage:
        """How the model is used; its image processor scales images."""
        return Usage(task="image-segmentation", auto_class="SemanticSegmenter")

    def prepare(self, row: Mapping[str, Any]) -> tuple[Picture, Picture]:
        """A row's image and its mask, neither decoded.

        Raises:
            BadRow: if either is missing or cannot be used.
        """
        assert self.data is not None
        picture = self.data.pictures.of(row)
        return picture, self.data.masks.of(row, beside=picture)

    def encode(self, rows: Sequence[tuple[str, tuple[Picture, Picture]]]) -> list[Example]:
        """Examples of (id, (image, mask)) rows, which weigh nothing before `draw`."""
        return [
            Example(example_id, self.max_length, 0.0, {"picture": picture, "mask": mask})
            for example_id, (picture, mask) in rows
        ]

    def draw(self, example: Example, epoch: int | None) -> Example:
        """Draw how an image is augmented in a pass (a held-out one, None, is not), and weigh what is left of it.

        Raises:
            UserError: for a mask that cannot be used.
        """
        changed = UNCHANGED
        if epoch is not None and self.augmenter is not None:
            changed = self.augmenter.draw(epoch, example.id)
        assert self.data is not None
        if not self.data.masks.seen:
            self._check_size(example, self.data)
        weight = self.objective.weight(self._labels(example, changed, self.data))
        return replace(example, weight=weight, features={**example.features, "augmentation": changed})

    def preview(self, example: Example) -> list[Line]:
        """The image's size and how it is changed, and the classes of its pixels by name."""
        assert self.data is not None
        labels = self._labels(example, example.features["augmentation"], self.data)
        shares = [(float((labels == i).float().mean()), name) for i, name in enumerate(self.data.class_names)]
        shares.append((float((labels == IGNORE).float().mean()), "of no class"))
        told = ", ".join(f"{name} {share:.1%}" for share, name in shares if share)
        return [*preview_of_image(self.inputs, example), ("mask", told)]

    def collate(self, examples: Sequence[Example], length: int | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """The model's inputs, (num_examples, 3, resolution, resolution), and the classes of pixels, on the CPU.

        Raises:
            UserError: for an image or a mask that cannot be used.
        """
        assert self.data is not None
        labels = [self._labels(example, example.features["augmentation"], self.data) for example in examples]
        return {"pixel_values": pixel_values(self.inputs, examples)}, torch.stack(labels)

    def summed_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of the pixels with a class, summed, in float32."""
        inputs, labels = batch
        return self.objective(model(**inputs).logits, labels)

    def predict(self, model: nn.Module, batch: Batch) -> Predicted:
        """The summed loss, and the predicted classes of all pixels."""
        inputs, labels = batch
        logits = model(**inputs).logits
        return Predicted(self.objective(logits, labels), logits.argmax(-1), labels)

    def dummy_batch(self, model: nn.Module, num_examples: int, length: int, device: torch.device) -> Batch:
        """Images of nothing, with a class for each pixel."""
        images = made_up_images(num_examples, length, device)
        return {"pixel_values": images}, torch.zeros(images[:, 0].shape, dtype=torch.long, device=device)

    @staticmethod
    def check_metrics(best_metric: str | None) -> None:
        """Refuse a `best_metric` that an evaluation has no figure of.

        Raises:
            UserError: naming those that it has.
        """
        check_best_metric(best_metric, figures_of(np.eye(2, dtype=np.int64), ("no", "yes")))

    def evaluate(
        self, model: nn.Module, held_out: WindowStream[Any], *, ranks: Ranks, cutter: Cutter
    ) -> dict[str, Any]:
        """The mean loss of labelled pixels, and the figures of `figures_of`. A collective."""
        assert self.data is not None
        names = self.data.class_names
        device = next(model.parameters()).device

        def forward(examples: Sequence[Example], length: int) -> tuple[int, float, np.ndarray]:
            found = self.predict(model, to_device(self.collate(examples, length), device))
            counts = confusion(found.predictions, found.references, len(names))
            return len(examples), float(found.loss), counts.cpu().numpy()

        results, weight = run_over(model, held_out, forward, cutter)
        everyone = [of_batch for of_rank in ranks.gather_objects(results) for of_batch in of_rank]
        counts = np.sum([counts for _, _, counts in everyone], axis=0)
        return {
            "num_examples": sum(number for number, _, _ in everyone),
            # Where no pixel is left with a class (of small ones none may be, once scaled) there is no loss to tell.
            "loss": sum(loss for _, loss, _ in everyone) / weight if weight else math.nan,
            **figures_of(counts, names),
        }

    def _check_size(self, example: Example, data: MaskedImages) -> None:
        """Compare the sizes of an image and its mask, where no pass over the data has."""
        picture, mask = example.features["picture"], example.features["mask"]
        try:
            check_size(mask, size_of(mask, data.masks.most_pixels), size_of(picture, data.pictures.most_pixels))
        except BadRow as bad:
            raise _of_example(example, bad) from bad

    def _labels(self, example: Example, augmentation: Augmentation, data: MaskedImages) -> Tensor:
        """The classes of an image's pixels, (resolution, resolution)."""
        mask: Picture = example.features["mask"]
        try:
            opened = open_mask(mask, data.masks.most_pixels)
            numbers = np.array(augmentation.mask(opened, self.inputs.resolution), dtype=np.int64)
            check_numbers(mask, numbers, data.ignore_index, len(data.class_names), are_named=True)
        except BadRow as bad:
            raise _of_example(example, bad) from bad
        labels = torch.from_numpy(numbers)
        return labels.masked_fill_(labels == data.ignore_index, IGNORE)


def _of_example(example: Example, bad: BadRow) -> UserError:
    shard, _, row = example.id.partition(":")
    return UserError(
        f"shard {shard} of the dataset, row {row} (both from 0): {bad}; mend the row; a pass over the data before "
        "the training finds all such masks: give `num_epochs`, or leave them out by `on_bad_row skip`"
    )


def confusion(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """How many pixels of each class (rows) were taken for each class (columns); of those with a label."""
    kept = labels != IGNORE
    pairs = labels[kept] * num_classes + predicted[kept]
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def figures_of(counts: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Of a confusion matrix: mean IoU (over the classes that occur), mean and overall accuracy, and a table by class.

    The intersection over union of a class: pixels that are of it and were taken for it, by those that are or were
    (Everingham et al., The PASCAL Visual Object Classes Challenge, 2015, section 4.4).
    """
    right, truth, taken = np.diag(counts).astype(float), counts.sum(axis=1), counts.sum(axis=0)
    union = truth + taken - right
    ious = [float(r / u) if u else None for r, u in zip(right, union, strict=True)]
    accuracies = [float(r / t) if t else None for r, t in zip(right, truth, strict=True)]
    return {
        "num_pixels": int(counts.sum()),
        "mean_iou": _mean(ious),
        "mean_accuracy": _mean(accuracies),
        "overall_accuracy": float(right.sum() / max(1, counts.sum())),
        "per_class": {
            name: {"iou": iou, "accuracy": accuracy, "support": float(support)}
            for name, iou, accuracy, support in zip(names, ious, accuracies, truth, strict=True)
        },
    }


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else 0.0
