"""Images: exact whatever the cut, bad images left out or named, statistics kept, any vision model."""

import io
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from tiny_vision import (
    CLASSES,
    SIDE,
    draw_row,
    labelled_images,
    masked_images,
    refused,
    run,
    save_vision_model,
    stored,
)
from torch import nn
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification, ViTImageProcessorPil
from window_cases import largest_relative_difference, make_window

from hf_accum.accumulation.accumulate import accumulate
from hf_accum.accumulation.losses import IGNORE, CrossEntropy
from hf_accum.cli.main import main as command
from hf_accum.config.lora import LoraConfig
from hf_accum.models.trainable import load_trainable
from hf_accum.tasks.vision.augmentation import Augmenter
from hf_accum.tasks.vision.classification import ImageClassification
from hf_accum.tasks.vision.inputs import ImageInputs, load_image_processor
from hf_accum.tasks.vision.segmentation import SemanticSegmentation
from recipes.driving_images import DrivingImagesConfig, spec_of
from recipes.embedded import signs

NAMES = ("background", *CLASSES)
AUGMENTER = Augmenter(0, 0.5, True, 0.3)


def task_of(name: str, folder: Path) -> Any:
    inputs = ImageInputs.of(load_image_processor(str(folder)), SIDE)
    if name == "segmentation":
        return SemanticSegmentation(masked_images(NAMES), CrossEntropy(), inputs, AUGMENTER)
    return ImageClassification(labelled_images(CLASSES), CrossEntropy(), inputs, AUGMENTER)


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("name", ["classification", "segmentation"])
@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_the_gradient_is_that_of_the_unsplit_batch(
    tmp_path: Path, accelerator: Accelerator, name: Any, micro_batch_size: int, rank: int
) -> None:
    """In float64, in train mode, against torch's own mean loss of one batch."""
    save_vision_model(tmp_path)
    config = DrivingImagesConfig(
        task=name, dropout=0.0, lora=LoraConfig(rank=rank, target_modules="all-linear-and-conv")
    )
    names = NAMES if name == "segmentation" else CLASSES
    spec = replace(spec_of(config, names), name=str(tmp_path))
    model = load_trainable(spec, load_image_processor(str(tmp_path)), config, device=torch.device("cpu")).model
    model.double().train()
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:
            nn.init.normal_(parameter, std=0.1)  # at zero the gradient of the other factor would be too
    task = task_of(name, tmp_path)
    draw = random.Random(3)
    rows = [(f"0:{index}", task.prepare(draw_row(draw))) for index in range(7)]
    examples = [task.draw(example, 0) for example in task.encode(rows)]

    def batch(examples: Any) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, labels = task.collate(examples)
        return inputs["pixel_values"].double(), labels

    images, labels = batch(examples)
    logits = model(pixel_values=images).logits
    loss = nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORE)
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(loss, list(trained.values()))
    window = make_window(examples, examples[0], whole=examples)
    for micro_batch in window.micro_batches(micro_batch_size):
        with accumulate(accelerator, model, micro_batch):
            images, labels = batch(micro_batch.examples)
            summed = task.summed_loss(model, ({"pixel_values": images}, labels))
            accelerator.backward(micro_batch.scaled(summed))
    assert sum(bool(gradient.any()) for gradient in gradients) > 10
    assert largest_relative_difference(model, dict(zip(trained, gradients, strict=True))) <= 1e-12
    assert float(window.loss_sum()) / window.window.num_items == pytest.approx(loss.item(), rel=1e-12)


def test_full_fine_tuning_keeps_the_statistics_and_says_so(
    tmp_path: Path, accelerator: object, capsys: pytest.CaptureFixture[str]
) -> None:
    before = AutoModelForImageClassification
    output = run(tmp_path, **{"lora.rank": 0, "learning_rate": 0.01})
    said = capsys.readouterr().out
    assert "BatchNorm layers keep the statistics that they came with" in said
    assert "at most 4 examples at once" in said
    first = before.from_pretrained(str(tmp_path / "model"), num_labels=3).state_dict()
    last = before.from_pretrained(str(output / "model")).state_dict()
    statistics = [name for name in first if "running_" in name]
    assert statistics
    for name in statistics:
        assert torch.equal(first[name], last[name]), name
    moved = [name for name in first if first[name].is_floating_point() and not torch.equal(first[name], last[name])]
    assert any("batchnorm.weight" in name for name in moved)
    assert json.loads((output / "model" / "preprocessor_config.json").read_text())["size"] == {
        "height": SIDE,
        "width": SIDE,
    }
    (line, *_) = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert line["num_tokens"] == line["num_padded_tokens"] == 8 * (SIDE // 16) ** 2


def test_statistics_of_the_micro_batch_are_a_flag_and_said(
    tmp_path: Path, accelerator: object, capsys: pytest.CaptureFixture[str]
) -> None:
    output = run(tmp_path, batch_norm="micro_batch", **{"lora.rank": 0})
    assert "BatchNorm layers, which see the micro-batch" in capsys.readouterr().out
    first = AutoModelForImageClassification.from_pretrained(str(tmp_path / "model"), num_labels=3).state_dict()
    last = AutoModelForImageClassification.from_pretrained(str(output / "model")).state_dict()
    assert any("running_" in name and not torch.equal(first[name], last[name]) for name in first)
    said = refused(capsys, tmp_path, batch_norm="micro_batch")
    assert "batch_norm micro_batch: has to be frozen with LoRA: an adapter holds no statistics" in said


def folder_of_images(folder: Path) -> None:
    draw = random.Random(0)
    for number in range(40):
        row = draw_row(draw)
        path = folder / row["label"] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(row["image"]["bytes"])


def test_bad_images_are_named_or_left_out_and_counted(
    tmp_path: Path, accelerator: object, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    folder_of_images(data)
    broken = sorted((data / "red").iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:-40])
    (data / "blue" / "huge.png").write_bytes(stored(Image.fromarray(np.zeros((300, 300), np.uint8))))
    said = refused(capsys, tmp_path, max_image_pixels=50_000)
    assert "field 'image': " in said
    assert "--on_bad_row skip" in said
    output = run(tmp_path, max_image_pixels=50_000, on_bad_row="skip", max_steps="null", num_epochs=2)
    said = capsys.readouterr().out
    assert f"left out: 1 bad rows (field 'image': red/{broken.name} cannot be decoded" in said
    assert "has 300 x 300 pixels, more than the 50,000 that are taken (--max_image_pixels)" in said
    evaluation = json.loads((output / "evaluation.json").read_text())
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert sum(line["num_examples"] for line in lines) / 2 + evaluation["num_examples"] == 40 - 1
    assert set(evaluation["per_class"]) == set(CLASSES)
    adapted = json.loads((output / "adapter" / "adapter_config.json").read_text())["target_modules"]
    kinds = {name.rpartition(".")[2] for name in adapted}
    assert {"expand_conv", "project_conv", "top_conv"} <= kinds
    assert not kinds & {"depthwise_conv", "classifier"}


@pytest.mark.filterwarnings("ignore:You are using a model of type")
def test_a_transformer_goes_the_same_way_and_a_head_of_other_classes_only_when_asked(
    tmp_path: Path, accelerator: object, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes: dict[str, int] = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    model = ViTForImageClassification(
        ViTConfig(num_hidden_layers=2, image_size=SIDE, patch_size=8, num_labels=7, **sizes)  # type: ignore[call-arg]
    )
    model.save_pretrained(str(tmp_path / "model"))
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(str(tmp_path / "model"))
    said = refused(capsys, tmp_path)
    assert "its weights do not fit" in said
    assert "a new head by --ignore_mismatched_sizes" in said
    output = run(tmp_path, "--ignore_mismatched_sizes", gradient_checkpointing="true")
    assert "new, without pretrained weights: classifier" in capsys.readouterr().out
    adapter = json.loads((output / "adapter" / "adapter_config.json").read_text())
    assert any("query" in name or "q_proj" in name for name in adapter["target_modules"])
    assert adapter["modules_to_save"] == ["classifier"]


@pytest.mark.slow
def test_what_cannot_be_is_said_before_the_training(
    tmp_path: Path, accelerator: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "max_length 64: has to be left out: images have one size" in refused(capsys, tmp_path, max_length=64)
    assert "resolution 100: has to be a multiple of 32" in refused(capsys, tmp_path, resolution=100)
    said = refused(capsys, tmp_path, gradient_checkpointing="true")
    assert "--gradient_checkpointing true: EfficientNetForImageClassification has no support for it" in said
    assert (
        "--lora.rank 64: no layer of EfficientNetForImageClassification has more weights than an adapter"
        in refused(capsys, tmp_path, **{"lora.rank": 64})
    )
    said = refused(capsys, tmp_path, label_column="class")
    assert "has no column 'class': it has image, mask, label" in said
    said = refused(capsys, tmp_path, micro_batch_size="auto", memory_budget="1MiB", resolution=256)
    assert "not even one example of 256 patches fits" in said
    assert "--resolution 128" in said
    assert "max_length" not in said


def test_a_plan_is_for_one_resolution(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_vision_model(tmp_path)
    flags = ["--model", str(tmp_path), "--resolution", "64", "--lora.rank", "2", "--variants", "full,lora"]
    command(["plan", "driving_images", *flags])
    said = capsys.readouterr().out
    assert "driving_images for" in said
    assert "16 patches" in said
    assert "4096+" in said


def test_drawn_signs_are_where_their_masks_say_and_the_same_each_time(tmp_path: Path) -> None:
    photograph = tmp_path / "grey.png"
    Image.new("RGB", (300, 240), (90, 90, 90)).save(photograph)
    first, again = (list(signs.draw_signs([photograph], 8, side=512)) for _ in range(2))
    assert first == again
    assert {row["label"] for row in first} == set(signs.CLASSES)
    for row in first:
        pixels, mask = (np.asarray(Image.open(io.BytesIO(row[name]["bytes"]))) for name in ("image", "mask"))
        number = 1 + signs.CLASSES.index(row["label"])
        assert set(np.unique(mask)) == {0, number}
        rows, columns = np.nonzero(mask)
        for places in (rows, columns):  # 77 to 102 of 1,024 pixels, askew
            assert 0.06 * 512 <= np.ptp(places) <= 0.12 * 512
        colourful = np.ptp(pixels.astype(int), axis=2) > 60  # JPEG lets it run over the edge by a pixel
        assert (colourful & (mask > 0)).sum() > 0.8 * colourful.sum() > 0.1 * (mask > 0).sum()
        assert row["photograph"] == "grey"


def test_masks_that_no_pass_has_seen_end_the_run_as_the_user_s_mistake(
    tmp_path: Path, accelerator: object, capsys: pytest.CaptureFixture[str]
) -> None:
    flags: dict[str, Any] = {"task": "segmentation", "num_epochs": "null", "labels": "background,blue"}
    said = refused(capsys, tmp_path, **flags)
    assert "field 'mask': has the number " in said
    assert "none of the 2 classes of --labels, and not --ignore_index 255 (a new class is named by --labels" in said
    assert "or leave them out by --on_bad_row skip" in said
