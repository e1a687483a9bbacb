"""Semantic segmentation: a class for each pixel of an image, and how well they are found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_accum.accumulation.example import Example, Lengths
from hf_accum.accumulation.losses import IGNORE, Objective
from hf_accum.accumulation.splitting import Cutter
from hf_accum.data.formats.rows import BadRow
from hf_accum.data.stream import WindowStream
from hf_accum.distributed.collectives import on_rank_0
from hf_accum.distributed.ranks import Ranks
from hf_accum.errors import UserError
from hf_accum.evaluation.bootstrap import Weighted, with_intervals
from hf_accum.evaluation.evaluate import check_best_metric
from hf_accum.evaluation.judge import Predicted, judge
from hf_accum.evaluation.records import place_in, write_records
from hf_accum.evaluation.weighted import mean, nanmean
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
        assert self.data is not None
        columns = {"image": self.data.pictures.column, "mask": self.data.masks.column}
        return Usage(task="image-segmentation", auto_class="SemanticSegmenter", columns=columns)

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
        """The summed loss; of each image its own, and by class the pixels that are right, that are of it, and that
        were taken for it, (num_examples, 1 + 3 * num_classes); how many of its pixels have a class.
        """
        inputs, labels = batch
        logits = model(**inputs).logits
        rows, num_classes = [], logits.shape[-1]
        for of_image, truth in zip(logits.split(1), labels.split(1), strict=True):
            counts = confusion(of_image.argmax(-1), truth, num_classes).cpu()
            loss = self.objective(of_image, truth).cpu().double()  # MPS has no float64
            rows.append(torch.cat([loss[None], counts.diag(), counts.sum(1), counts.sum(0)]))
        sums = torch.stack(rows)
        return Predicted(sums[:, 0].sum(), sums, sums[:, 1 + num_classes : 1 + 2 * num_classes].sum(1))

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
        check_best_metric(best_metric, figures_of(np.ones((3, 2)), ("no", "yes")))

    def show(self, example: Example) -> dict[str, Any]:
        """The file of an image, or a digest of its bytes."""
        return {"image": example.features["picture"].key}

    def evaluate(
        self,
        model: nn.Module,
        held_out: WindowStream[Any],
        *,
        ranks: Ranks,
        cutter: Cutter,
        folder: Path | None = None,
    ) -> dict[str, Any]:
        """The mean loss of labelled pixels, and the figures of `figures_of`. A collective.

        With a folder also 95 % intervals, and in the folder each image with its mean loss.
        """
        assert self.data is not None
        names = self.data.class_names

        each: dict[str, Any] = {"objective": _mean_loss, "show": self.show} if folder is not None else {}
        judged = judge(model, held_out, self.collate, self.predict, ranks=ranks, cutter=cutter, **each)
        losses, of_classes = judged.outputs[:, 0], judged.outputs[:, 1:]

        def weighted(weights: np.ndarray) -> dict[str, np.ndarray]:
            sums = np.moveaxis((weights @ of_classes).reshape(len(weights), 3, len(names)), 1, 0)
            return {"loss": mean(weights, losses, judged.references), **_means(*sums)}

        def record(index: int) -> dict[str, Any]:
            right, truth, _ = of_classes[index].reshape(3, -1)
            return {"num_pixels": int(truth.sum()), "num_right": int(right.sum())}

        def compute() -> dict[str, Any]:
            of_all = figures_of(of_classes.sum(axis=0).reshape(3, -1), names)
            figures = {"num_examples": len(judged.ids), "loss": judged.loss, **of_all}
            if folder is None:
                return figures
            place_of = place_in(held_out.source.names, held_out.source.parts_per_row)
            figures["notes"] = write_records(folder, judged, place_of, record)
            return with_intervals(figures, judged.groups, [Weighted(weighted, width=3)])

        return on_rank_0(ranks, compute)

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
    """How many pixels of each class (rows) were taken for each class (columns); of those with a label.

    Its operations have shapes that depend on no value, so that an evaluation can be traced.
    """
    num_pairs = num_classes**2
    pairs = torch.where(labels == IGNORE, num_pairs, labels * num_classes + predicted).flatten()
    counts = torch.zeros(num_pairs + 1, dtype=torch.long, device=pairs.device)
    counts.index_add_(0, pairs, torch.ones_like(pairs))
    return counts[:-1].reshape(num_classes, num_classes)


def figures_of(counts: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Mean IoU (over the classes that occur), mean and overall accuracy, and a table by class.

    `counts`, (3, num_classes), are of pixels: those that are right, that are of a class, that were taken for it. The
    intersection over union of a class: pixels that are of it and were taken for it, by those that are or were
    (Everingham et al., The PASCAL Visual Object Classes Challenge, 2015, section 4.4).
    """
    right, truth, taken = counts.astype(float)
    union = truth + taken - right
    ious = [float(r / u) if u else None for r, u in zip(right, union, strict=True)]
    accuracies = [float(r / t) if t else None for r, t in zip(right, truth, strict=True)]
    means = _means(right[None], truth[None], taken[None])
    return {
        "num_pixels": int(truth.sum()),
        **{name: float(np.nan_to_num(values[0])) for name, values in means.items()},
        "per_class": {
            name: {"iou": iou, "accuracy": accuracy, "support": float(support)}
            for name, iou, accuracy, support in zip(names, ious, accuracies, truth, strict=True)
        },
    }


def _means(right: np.ndarray, truth: np.ndarray, taken: np.ndarray) -> dict[str, np.ndarray]:
    """The figures of all classes together, of counts of (num_resamples, num_classes) each."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ious, accuracies = right / (truth + taken - right), right / truth
        overall = right.sum(axis=1) / truth.sum(axis=1)
    return {"mean_iou": nanmean(ious.T), "mean_accuracy": nanmean(accuracies.T), "overall_accuracy": overall}


def _mean_loss(sums: Tensor, num_pixels: Tensor) -> float:
    return float(sums[0, 0] / num_pixels[0])
