"""Segmentation: its figures against scikit-learn's, its head, the weight of a window."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawn_by_hand import interval_by_hand
from masked_cases import mask_of, masked
from PIL import Image
from sklearn import metrics
from tiny_vision import CLASSES, SIDE, draw_row, masked_images, save_vision_model, stored
from torch import nn

from hf_accum.accumulation.capacity import Capacity, WorkingCapacity
from hf_accum.accumulation.example import Example, Origin
from hf_accum.accumulation.losses import IGNORE, CrossEntropy
from hf_accum.accumulation.splitting import Cutter
from hf_accum.data.source import Source
from hf_accum.data.stream import WindowStream
from hf_accum.distributed.ranks import OneRank
from hf_accum.tasks.vision.augmentation import Augmenter
from hf_accum.tasks.vision.inputs import ImageInputs
from hf_accum.tasks.vision.segmentation import SemanticSegmentation, confusion, figures_of
from hf_accum.tasks.vision.segmenter import SemanticSegmenter

NAMES = ("background", *CLASSES)
SCORES: Any = metrics  # whose types refuse what its documentation allows


def test_figures_are_those_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (3, 9, 11), generator=generator)
    predicted = torch.where(torch.rand(labels.shape, generator=generator) < 0.6, labels, (labels + 1) % 5)
    labels[0, :4] = IGNORE
    counts = sum(confusion(p, t, 6) for p, t in zip(predicted, labels, strict=True))  # of several batches
    assert isinstance(counts, torch.Tensor)
    sums = torch.stack([counts.diag(), counts.sum(1), counts.sum(0)])  # right, of the class, taken for it
    figures = figures_of(sums.numpy(), tuple("abcdef"))
    kept = labels != IGNORE
    truth, taken = labels[kept].numpy(), predicted[kept].numpy()
    ious = SCORES.jaccard_score(truth, taken, labels=range(5), average=None, zero_division=0)
    recalls = SCORES.recall_score(truth, taken, labels=range(4), average=None)
    assert figures["mean_iou"] == pytest.approx(np.mean(ious))  # of the five classes that occur on either side
    assert figures["mean_accuracy"] == pytest.approx(np.mean(recalls))  # of the four that are in the labels
    assert figures["overall_accuracy"] == pytest.approx(np.mean(truth == taken))
    assert figures["num_pixels"] == int(kept.sum())
    assert [row["iou"] for row in figures["per_class"].values()][:5] == pytest.approx(ious.tolist())
    assert figures["per_class"]["f"] == {"iou": None, "accuracy": None, "support": 0.0}


def segmentation(folder: Path, augmenter: Augmenter | None = None) -> SemanticSegmentation:
    from hf_accum.tasks.vision.inputs import load_image_processor

    save_vision_model(folder)
    inputs = ImageInputs.of(load_image_processor(str(folder)), SIDE)
    return SemanticSegmentation(masked_images(NAMES), CrossEntropy(), inputs, augmenter)


def rows_of(number: int) -> list[dict[str, Any]]:
    draw = random.Random(1)
    return [draw_row(draw) for _ in range(number)]


def test_an_image_weighs_as_many_pixels_as_have_a_class_after_its_augmentation(tmp_path: Path) -> None:
    task = segmentation(tmp_path, Augmenter(0, 0.3, True, 0.2))
    (example,) = task.encode([("0:0", task.prepare(rows_of(1)[0]))])
    weights = set()
    for epoch in (None, 0, 1, 2):
        drawn = task.draw(example, epoch)
        inputs, labels = task.collate([drawn])
        assert inputs["pixel_values"].shape == (1, 3, SIDE, SIDE)
        assert drawn.weight == float((labels != IGNORE).sum())
        assert 0 < drawn.weight < SIDE**2
        weights.add(drawn.weight)
    assert len(weights) == 4
    assert drawn.length == 4  # patches of 16 pixels a side


@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_an_evaluation_is_that_of_all_pixels(tmp_path: Path, micro_batch_size: int) -> None:
    task = segmentation(tmp_path)
    model = SemanticSegmenter.from_pretrained(str(tmp_path), num_labels=len(NAMES))
    rows = rows_of(7)
    source = Source(("rows",), lambda shard, start: iter(list(enumerate(rows))[start:]), {})
    stream = WindowStream(
        source,
        task.prepare,
        task.encode,
        ranks=OneRank(),
        effective_batch_size=4,
        seed=0,
        draw=lambda example, epoch: task.draw(example, None),
        skip_weightless=False,
    )
    cutter = Cutter(WorkingCapacity(Capacity(micro_batch_size)))
    figures = task.evaluate(model, stream, ranks=OneRank(), cutter=cutter)
    whole = [
        task.draw(example, None) for example in task.encode([(str(i), task.prepare(r)) for i, r in enumerate(rows)])
    ]
    inputs, labels = task.collate(whole)
    with torch.no_grad():
        logits = model(**inputs).logits
    kept = labels != IGNORE
    loss = nn.functional.cross_entropy(logits[kept], labels[kept])
    assert figures["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert figures["num_examples"] == 7
    assert figures["num_pixels"] == int(kept.sum())
    ious = SCORES.jaccard_score(labels[kept].numpy(), logits.argmax(-1)[kept].numpy(), average=None)
    assert figures["mean_iou"] == pytest.approx(np.mean(ious), abs=1e-6)


def test_an_unknown_best_metric_is_refused() -> None:
    SemanticSegmentation.check_metrics("mean_iou")
    with pytest.raises(ValueError, match="`best_metric` accuracy: has to be one of loss, mean_accuracy, mean_iou"):
        SemanticSegmentation.check_metrics("accuracy")


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (mask_of(7), "has the number 7, none of the 4 classes of `labels`, and not `ignore_index` 255"),
        (mask_of(0, 50, 20), "has 50 x 20 pixels, and its image 32 x 32: they have to be the same"),
        (stored(Image.new("RGB", (32, 32))), "is a mask in RGB: it has to have one channel"),
        (b"no image", "is damaged, or no image of"),
    ],
    ids=["number", "size", "channels", "damaged"],
)
def test_masks_that_no_pass_has_seen_are_told_as_a_mistake_in_the_data(
    tmp_path: Path, mask: bytes, reason: str
) -> None:
    data = masked(tmp_path / "data", [mask] * 8, [(32, 32)] * 8, label_names=NAMES, num_epochs=None)
    task = replace(segmentation(tmp_path / "model"), data=data)
    how: Any = {"ranks": OneRank(), "effective_batch_size": 4, "seed": 0, "shuffle_block_size": 1}
    stream = WindowStream(data.source, task.prepare, task.encode, draw=task.draw, **how)
    with pytest.raises(ValueError, match=rf"shard 0 of the dataset, row 0 .*: field 'mask': {reason}.*`num_epochs`"):
        next(iter(stream))


def test_an_evaluation_of_no_pixel_has_no_loss(tmp_path: Path) -> None:
    task = segmentation(tmp_path)
    model = SemanticSegmenter.from_pretrained(str(tmp_path), num_labels=len(NAMES))
    rows = [{"image": stored(Image.new("RGB", (32, 32))), "mask": mask_of(255)}] * 3
    source = Source(("rows",), lambda shard, start: iter(list(enumerate(rows))[start:]), {})
    how: Any = {"ranks": OneRank(), "effective_batch_size": 4, "seed": 0, "skip_weightless": False}
    stream = WindowStream(source, task.prepare, task.encode, draw=lambda e, epoch: task.draw(e, None), **how)
    figures = task.evaluate(model, stream, ranks=OneRank(), cutter=Cutter(WorkingCapacity(Capacity(2))))
    assert np.isnan(figures["loss"])
    assert (figures["num_pixels"], figures["num_examples"]) == (0, 3)


def test_at_the_end_each_image_is_told_and_intervals_are_of_images_drawn_by_group(tmp_path: Path) -> None:
    """Two images of a group; against the figures of all pixels of each drawing, by scikit-learn's matrix."""
    task = segmentation(tmp_path / "model")
    model = SemanticSegmenter.from_pretrained(str(tmp_path / "model"), num_labels=len(NAMES)).eval()
    rows = rows_of(8)

    def encode(some: Sequence[Any]) -> list[Example]:
        return [replace(one, origin=Origin(None, int(one.id[2:]) // 2)) for one in task.encode(some)]

    how: dict[str, Any] = {"ranks": OneRank(), "effective_batch_size": 3, "seed": 0, "skip_weightless": False}
    source = Source(("a.jsonl",), lambda shard, start: iter(list(enumerate(rows))[start:]), {})
    stream = WindowStream(source, task.prepare, encode, draw=lambda one, _: task.draw(one, None), **how)
    cutter = Cutter(WorkingCapacity(Capacity(3)))
    figures = task.evaluate(model, stream, ranks=OneRank(), cutter=cutter, folder=tmp_path)
    matrices = []
    for number, row in enumerate(rows):
        inputs, labels = task.collate([task.draw(task.encode([(f"0:{number}", task.prepare(row))])[0], None)])
        with torch.no_grad():
            told = model(**inputs).logits.argmax(-1)
        kept = labels != IGNORE
        matrices.append(metrics.confusion_matrix(labels[kept], told[kept], labels=range(len(NAMES))))

    def figure(name: str, indices: list[int]) -> float:
        whole = np.sum([matrices[index] for index in indices], axis=0, dtype=float)
        right, truth, taken = np.diag(whole), whole.sum(1), whole.sum(0)
        of_classes = {"mean_iou": (right, truth + taken - right), "mean_accuracy": (right, truth)}
        if name == "overall_accuracy":
            return float(right.sum() / truth.sum())
        return float(np.mean([part / of for part, of in zip(*of_classes[name], strict=True) if of]))

    groups = [number // 2 for number in range(8)]
    assert set(figures["confidence_intervals"]) == {"loss", "mean_iou", "mean_accuracy", "overall_accuracy"}
    for name in ("mean_iou", "mean_accuracy", "overall_accuracy"):
        by_hand = interval_by_hand(groups, lambda indices, name=name: figure(name, indices))
        assert figures["confidence_intervals"][name] == pytest.approx(by_hand, abs=1e-9), name
        assert figures[name] == pytest.approx(figure(name, [*range(8)]))
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [line["num_pixels"] for line in lines] == [int(matrix.sum()) for matrix in matrices]
    assert [line["num_right"] for line in lines] == [int(np.trace(matrix)) for matrix in matrices]
    assert json.loads((tmp_path / "errors.jsonl").read_text().splitlines()[0])["image"]
