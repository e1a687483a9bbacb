"""Classification of images: rows to examples, a batch as images are drawn, one forward."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_vision import CLASSES, labelled_images, stored
from torch import Tensor, nn

from hf_accum.accumulation.losses import CrossEntropy
from hf_accum.data.formats.rows import BadRow
from hf_accum.errors import UserError
from hf_accum.tasks.vision.augmentation import UNCHANGED, Augmenter
from hf_accum.tasks.vision.classification import ImageClassification


class Sizes:
    """In the place of a model's processor: of an image its mean, augmented or not."""

    resolution = 32

    def pixel_values(self, pictures: list[Any], augmentations: list[Any]) -> Tensor:
        values = []
        for picture, augmentation in zip(pictures, augmentations, strict=True):
            if picture.read() == b"broken":
                raise BadRow("image", "cannot be decoded")
            values.append(1.0 if augmentation is UNCHANGED else 2.0)
        return torch.tensor(values)[:, None, None, None].expand(-1, 3, 32, 32)


def task(augmenter: Augmenter | None = None) -> ImageClassification:
    inputs: Any = Sizes()
    return ImageClassification(labelled_images(CLASSES), CrossEntropy(), inputs, augmenter)


def row(label: object, image: bytes | None = None) -> dict[str, Any]:
    content = stored(Image.fromarray(np.zeros((4, 4, 3), np.uint8))) if image is None else image
    return {"image": {"bytes": content, "path": None}, "label": label}


def test_a_row_is_an_example_of_its_class_in_patches() -> None:
    made = task()
    examples = made.encode([("0:0", made.prepare(row("red"))), ("0:1", made.prepare(row("blue")))])
    assert [(e.id, e.features["label"], e.weight) for e in examples] == [("0:0", 2, 1.0), ("0:1", 0, 1.0)]
    assert {e.length for e in examples} == {made.max_length}
    with pytest.raises(BadRow, match="purple"):
        made.prepare(row("purple"))


def test_an_image_is_augmented_in_training_and_not_when_it_is_held_out() -> None:
    made = task(Augmenter(0, 0.5, mirror=True, color_jitter=0.1))
    (example,) = made.encode([("0:0", made.prepare(row("red")))])
    drawn = [made.draw(example, epoch) for epoch in (None, 0, 1)]
    inputs, labels = made.collate(drawn)
    assert inputs["pixel_values"][:, 0, 0, 0].tolist() == [1.0, 2.0, 2.0]
    assert labels.tolist() == [2, 2, 2]
    assert drawn[1].features["augmentation"] != drawn[2].features["augmentation"]
    assert task().draw(example, 0) is example


def test_an_image_that_no_pass_has_seen_to_be_broken_is_named() -> None:
    made = task()
    examples = made.encode([("0:7", made.prepare(row("red", b"broken")))])
    with pytest.raises(UserError, match=r"an image of the examples 0:7: .*cannot be decoded"):
        made.collate(examples)


class Logits(nn.Module):
    """The same whatever it sees."""

    def forward(self, pixel_values: Tensor) -> Any:
        from types import SimpleNamespace

        return SimpleNamespace(logits=torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])[: len(pixel_values)])


def test_loss_and_prediction_are_of_one_forward() -> None:
    batch = ({"pixel_values": torch.zeros(2, 3, 32, 32)}, torch.tensor([1, 2]))
    expected = F.cross_entropy(Logits()(batch[0]["pixel_values"]).logits, batch[1], reduction="sum")
    assert task().summed_loss(Logits(), batch) == pytest.approx(expected.item())
    predicted = task().predict(Logits(), batch)
    assert float(predicted.loss) == pytest.approx(expected.item())
    assert predicted.predictions.tolist() == [[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]]
