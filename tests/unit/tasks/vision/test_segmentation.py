"""Segmentation: its figures against scikit-learn's, its head, the weight of a window."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics
from tiny_vision import CLASSES, SIDE, draw_row, masked_images, save_vision_model, stored
from torch import nn
from transformers import AutoConfig, ViTConfig

from hf_accum.accumulation.capacity import Capacity, WorkingCapacity
from hf_accum.accumulation.losses import IGNORE, CrossEntropy
from hf_accum.accumulation.splitting import Cutter
from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.source import Source, good_rows
from hf_accum.data.stream import WindowStream
from hf_accum.distributed.ranks import OneRank
from hf_accum.tasks.vision.augmentation import Augmenter
from hf_accum.tasks.vision.data import MaskedImages, open_masked_images
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
    with pytest.raises(ValueError, match=r"`task` segmentation: needs a model with feature maps .* ViTModel has not"):
        SemanticSegmenter.from_config(AutoConfig.from_pretrained(str(tmp_path)))


def test_an_unknown_best_metric_is_refused() -> None:
    SemanticSegmentation.check_metrics("mean_iou")
    with pytest.raises(ValueError, match="`best_metric` accuracy: has to be one of loss, mean_accuracy, mean_iou"):
        SemanticSegmentation.check_metrics("accuracy")


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
    named: dict[str, Any] = {"label_names": flags.pop("label_names", ()), "ignore_index": 255}
    config = RecipeConfig(**{"num_epochs": 1, "max_steps": 1, "eval_fraction": 0.3, "group_column": "group"} | flags)
    return open_masked_images(str(folder), OneRank(), config, image_column="image", mask_column="mask", **named)


def test_a_mask_that_is_bad_for_one_image_is_good_for_others(tmp_path: Path) -> None:
    """What the survey counted is what the stream trains on and evaluates: empty masks are often the same bytes."""
    masks = [mask_of(0)] * 20 + [mask_of(0, upper=1)] * 10 + [mask_of(0)]
    data = masked(tmp_path / "data", masks, [(32, 32)] * 30 + [(40, 40)], on_bad_row="skip")
    reason = "field 'mask': has 32 x 32 pixels, and its image 40 x 40: they have to be the same"
    assert data.bad_rows == {reason: 1}
    task = replace(segmentation(tmp_path / "model"), data=data)
    bad_rows: Counter[str] = Counter()
    rows = list(good_rows(data.source, 0, 0, task.prepare, "skip", bad_rows))
    assert len(rows) == 30
    assert (data.num_train or 0) + (data.num_held_out or 0) == 30
    assert bad_rows == data.bad_rows


@pytest.mark.parametrize("eval_split", [None, "validation"])
def test_masks_without_any_class_are_refused_before_the_training(tmp_path: Path, eval_split: str | None) -> None:
    masks = [mask_of(255)] * 20
    if eval_split:
        masked(tmp_path / "data", [mask_of(0, upper=1)] * 20, [(32, 32)] * 20)
        masked(tmp_path / "other", masks, [(32, 32)] * 20, label_names=NAMES, num_epochs=None)
        (tmp_path / "other" / "train.parquet").rename(tmp_path / "data" / "validation.parquet")
        config = RecipeConfig(num_epochs=1, eval_split=eval_split)
        how: Any = {"image_column": "image", "mask_column": "mask", "label_names": (), "ignore_index": 255}
        with pytest.raises(ValueError, match="no pixel of the masks that are held out has a class, all are `ignore"):
            open_masked_images(str(tmp_path / "data"), OneRank(), config, **how)
        return
    with pytest.raises(ValueError, match="no pixel of the masks to train on has a class, all are `ignore_index` 255"):
        masked(tmp_path / "data", masks, [(32, 32)] * 20, label_names=NAMES)


def test_masks_of_one_class_are_refused_as_where_255_is_meant_as_one(tmp_path: Path) -> None:
    """A model that says nothing but that class would be perfect."""
    message = (
        r"the masks to train on have no class but 0, .* \(a pixel of `ignore_index` 255 has none: if it is a class"
    )
    for names in (("background", "road"), ()):
        with pytest.raises(ValueError, match=message):
            masked(tmp_path / str(len(names)), [mask_of(0, upper=255)] * 20, [(32, 32)] * 20, label_names=names)


def test_classes_without_a_pixel_are_said(tmp_path: Path) -> None:
    data = masked(tmp_path / "data", [mask_of(0, upper=2)] * 20, [(32, 32)] * 20, label_names=NAMES)
    assert f"no pixel to train on is of the class {NAMES[1]}, {NAMES[3]}" in data.notes


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
