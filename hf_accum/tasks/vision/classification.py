"""Classification of images: rows to examples, examples to a batch, logits to what the metrics need."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_accum.accumulation.example import Example, Lengths
from hf_accum.accumulation.losses import Objective
from hf_accum.accumulation.splitting import Cutter
from hf_accum.data.formats.rows import BadRow
from hf_accum.data.stream import WindowStream
from hf_accum.distributed.ranks import Ranks
from hf_accum.errors import UserError
from hf_accum.evaluation.classification import check_classification
from hf_accum.evaluation.decisions import Decisions
from hf_accum.evaluation.judge import Predicted
from hf_accum.models.usage import Usage
from hf_accum.tasks.judging import judge_classes
from hf_accum.tasks.preview import Line
from hf_accum.tasks.vision.augmentation import UNCHANGED, Augmenter
from hf_accum.tasks.vision.data import LabelledImages
from hf_accum.tasks.vision.images import Picture, size_of
from hf_accum.tasks.vision.inputs import PATCHES, ImageInputs, made_up_images, num_patches

Batch = tuple[Mapping[str, Tensor], Tensor]
"""The model's inputs, and the labels."""


@dataclass(frozen=True)
class ImageClassification:
    """One class for each image. Images stay as they are stored until a batch is made of them."""

    data: LabelledImages | None
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
        columns = {"image": self.data.pictures.column, "label": self.data.labels.column}
        return Usage(task="image-classification", auto_class="AutoModelForImageClassification", columns=columns)

    def prepare(self, row: Mapping[str, Any]) -> tuple[Picture, int]:
        """A row's image, not decoded, and its class.

        Raises:
            BadRow: if either is missing or cannot be used.
        """
        assert self.data is not None
        label = self.data.labels.encode(row)
        assert isinstance(label, int)
        return self.data.pictures.of(row), label

    def encode(self, rows: Sequence[tuple[str, tuple[Picture, int]]]) -> list[Example]:
        """Examples of (id, (image, class)) rows."""
        return [
            Example(
                id=example_id,
                length=self.max_length,
                weight=self.objective.weight(torch.tensor([label])),
                features={"picture": picture, "label": label, "augmentation": UNCHANGED},
            )
            for example_id, (picture, label) in rows
        ]

    def draw(self, example: Example, epoch: int | None) -> Example:
        """Draw how an image is augmented in a pass; a held-out one (None) is not."""
        if epoch is None or self.augmenter is None:
            return example
        augmentation = self.augmenter.draw(epoch, example.id)
        return replace(example, features={**example.features, "augmentation": augmentation})

    def preview(self, example: Example) -> list[Line]:
        """The image's size and how it is changed, and its class by name."""
        assert self.data is not None
        return [*preview_of_image(self.inputs, example), ("label", self.data.class_names[example.features["label"]])]

    def collate(self, examples: Sequence[Example], length: int | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """The model's inputs, (num_examples, 3, resolution, resolution), and the classes, on the CPU.

        Raises:
            UserError: for an image that cannot be decoded.
        """
        labels = torch.tensor([example.features["label"] for example in examples], dtype=torch.long)
        return {"pixel_values": pixel_values(self.inputs, examples)}, labels

    def summed_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of the images, summed, in float32."""
        inputs, labels = batch
        return self.objective(model(**inputs).logits, labels)

    def predict(self, model: nn.Module, batch: Batch) -> Predicted:
        """The summed loss, and the logits."""
        inputs, labels = batch
        logits = model(**inputs).logits
        return Predicted(self.objective(logits, labels), logits.float(), labels)

    def dummy_batch(self, model: nn.Module, num_examples: int, length: int, device: torch.device) -> Batch:
        """Images of nothing, with a class each."""
        labels = torch.zeros(num_examples, dtype=torch.long, device=device)
        return {"pixel_values": made_up_images(num_examples, length, device)}, labels

    def check_metrics(self, best_metric: str | None) -> None:
        """Compute the figures once, before the training that needs them.

        Raises:
            UserError: if there is no figure `best_metric`.
        """
        check_classification(self.decisions, best_metric=best_metric)

    @property
    def decisions(self) -> Decisions:
        """How logits are read."""
        assert self.data is not None
        return Decisions(self.data.class_names, several=False)

    def evaluate(
        self,
        model: nn.Module,
        held_out: WindowStream[Any],
        *,
        ranks: Ranks,
        cutter: Cutter,
        folder: Path | None = None,
    ) -> dict[str, Any]:
        """The loss and the figures over all examples of a stream; at the end also intervals, and each in a file."""
        return judge_classes(self, model, held_out, ranks=ranks, cutter=cutter, folder=folder)

    def show(self, example: Example) -> dict[str, Any]:
        """The file of an image, or a digest of its bytes."""
        return {"image": example.features["picture"].key}


def preview_of_image(inputs: ImageInputs, example: Example) -> list[Line]:
    """An image's size, as stored and as the model sees it, and how it is augmented.

    Raises:
        BadRow: if it cannot be used.
    """
    picture, side = example.features["picture"], inputs.resolution
    width, height = size_of(picture, inputs.most_pixels)
    size = f"{picture.name}of {width:,} x {height:,} pixels, scaled to {side:,} x {side:,}"
    return [("image", size), ("augmented", str(example.features["augmentation"]))]


def pixel_values(inputs: ImageInputs, examples: Sequence[Example]) -> Tensor:
    """The images of examples, (num_examples, 3, resolution, resolution), augmented as was drawn.

    Raises:
        UserError: for one that cannot be decoded.
    """
    try:
        augmentations = [example.features["augmentation"] for example in examples]
        return inputs.pixel_values([example.features["picture"] for example in examples], augmentations)
    except BadRow as bad:
        ids = ", ".join(example.id for example in examples)
        raise UserError(
            f"an image of the examples {ids}: {bad}; a pass over the data before the training finds such images: "
            "give `num_epochs`, or `on_bad_row skip`"
        ) from bad
