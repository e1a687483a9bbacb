"""Segmentation: its figures against scikit-learn's, its head, the weight of a window."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics
from tiny_vision import CLASSES, SIDE, draw_row, save_vision_model
from torch import nn
from transformers import AutoConfig, ViTConfig

from hf_accum.augmentation import Augmenter
from hf_accum.capacity import Capacity, WorkingCapacity
from hf_accum.cutting import Cutter
from hf_accum.image_data import Pictures
from hf_accum.image_inputs import ImageInputs
from hf_accum.losses import IGNORE, CrossEntropy
from hf_accum.ranks import OneRank
from hf_accum.segmentation import SemanticSegmentation, confusion, figures_of
from hf_accum.segmenter import SemanticSegmenter
from hf_accum.source import Source
from hf_accum.stream import WindowStream

NAMES = ("background", *CLASSES)
SCORES: Any = metrics  # whose types refuse what its documentation allows


def test_figures_are_those_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (3, 9, 11), generator=generator)
    predicted = torch.where(torch.rand(labels.shape, generator=generator) < 0.6, labels, (labels + 1) % 5)
    labels[0, :4] = IGNORE
    counts = sum(confusion(p, t, 6) for p, t in zip(predicted, labels, strict=True))  # of several batches
    assert isinstance(counts, torch.Tensor)
    figures = figures_of(counts.numpy(), tuple("abcdef"))
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
    from hf_accum.image_inputs import load_image_processor

    save_vision_model(folder)
    inputs = ImageInputs.of(load_image_processor(str(folder)), SIDE)
    return SemanticSegmentation(Pictures("image"), Pictures("mask"), NAMES, 255, CrossEntropy(), inputs, augmenter)


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


def test_a_segmenter_has_its_encoder_s_weights_and_is_saved_and_loaded(tmp_path: Path) -> None:
    save_vision_model(tmp_path / "encoder")
    torch.manual_seed(5)
    model, info = SemanticSegmenter.from_pretrained(str(tmp_path / "encoder"), num_labels=3, output_loading_info=True)
    assert info["missing_keys"] == {f"head.{name}" for name, _ in model.head.named_parameters()}
    images = torch.randn(2, 3, 64, 96)
    logits = model(images).logits
    assert logits.shape == (2, 64, 96, 3)
    model.save_pretrained(str(tmp_path / "saved"))
    again = SemanticSegmenter.from_pretrained(str(tmp_path / "saved")).eval()
    assert torch.equal(again(images).logits, logits)
    from transformers import EfficientNetModel

    encoder = EfficientNetModel.from_pretrained(str(tmp_path / "encoder"))
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, model.base_model.state_dict()[name]), name


def test_a_model_without_feature_maps_is_refused(tmp_path: Path) -> None:
    ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=64
    ).save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match=r"--task segmentation: needs a model with feature maps .* ViTModel has not"):
        SemanticSegmenter.from_config(AutoConfig.from_pretrained(str(tmp_path)))


def test_an_unknown_best_metric_is_refused() -> None:
    SemanticSegmentation.check_metrics("mean_iou")
    with pytest.raises(ValueError, match="--best_metric accuracy: has to be one of loss, mean_accuracy, mean_iou"):
        SemanticSegmentation.check_metrics("accuracy")
