"""Images with models of several kinds: sizes that they take, heads of other labels, what a plan counts."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from plain_peft import load_adapter
from tiny_vision import CLASSES, SIDE, refused, run, save_images, save_vision_model
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    ConvNextConfig,
    ConvNextModel,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from hf_accum.cli.main import main as command
from hf_accum.config.lora import LoraConfig
from hf_accum.tasks.vision.segmenter import SemanticSegmenter
from recipes.driving_images import DrivingImagesConfig, train, workload


def save_vit(folder: Path, labels: tuple[str, ...]) -> None:
    sizes: dict[str, int] = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    names: dict[str, Any] = {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}}
    config: Any = ViTConfig(num_hidden_layers=2, image_size=SIDE, patch_size=8, **sizes, **names)
    torch.manual_seed(0)
    ViTForImageClassification(config).save_pretrained(str(folder))
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(str(folder))


def test_a_size_that_the_model_cannot_take_is_said_before_the_data_is_read(
    tmp_path: Path, accelerator: object, capsys: pytest.CaptureFixture[str]
) -> None:
    save_vit(tmp_path / "model", CLASSES)
    (tmp_path / "data").mkdir()  # without data
    said = refused(capsys, tmp_path, resolution=96)
    assert "--resolution 96: " in said
    assert "a ViTForImageClassification, takes no images of that size: its config says image_size 32 (" in said
    flags = ["--model", str(tmp_path / "model"), "--resolution", "64"]
    with pytest.raises(SystemExit):
        command(["plan", "driving_images", *flags, "--variants", "qlora"])
    assert "takes no images of that size: its config says image_size 32" in capsys.readouterr().err.replace("\n", " ")
    for quantization in ("none", "nf4"):
        how: dict[str, Any] = {"quantization": quantization, "lora": LoraConfig(rank=2)}
        workload(DrivingImagesConfig(model=str(tmp_path / "model"), resolution=SIDE, **how))


@pytest.mark.filterwarnings("ignore:You are using a model of type")
def test_a_head_of_as_many_other_classes_is_made_anew_when_asked(
    tmp_path: Path, accelerator: object, capsys: pytest.CaptureFixture[str]
) -> None:
    save_vit(tmp_path / "model", ("cat", "dog", "cow"))
    said = refused(capsys, tmp_path)
    assert "its head tells 'cat', 'dog', 'cow', in this order, and the labels are blue, green, red" in said
    assert "or a new head by --ignore_mismatched_sizes" in said
    output = run(tmp_path, "--ignore_mismatched_sizes", **{"lora.rank": 0, "learning_rate": 1e-9})
    assert "new, without pretrained weights: classifier" in capsys.readouterr().out
    first, last = (
        AutoModelForImageClassification.from_pretrained(str(folder))
        for folder in (tmp_path / "model", output / "model")
    )
    assert last.config.id2label == dict(enumerate(CLASSES))
    old, new = first.classifier.weight, last.classifier.weight
    assert (old - new).abs().max() > 0.01
    assert 0.01 < new.std() < 0.03  # as transformers draws it
    assert not last.classifier.bias.abs().max() > 1e-6
    torch.testing.assert_close(first.vit.layernorm.weight, last.vit.layernorm.weight)


@pytest.mark.filterwarnings("ignore:You are using a model of type")
def test_a_head_of_the_same_classes_stays_even_where_a_new_one_was_asked_for(
    tmp_path: Path, accelerator: object, capsys: pytest.CaptureFixture[str]
) -> None:
    save_vit(tmp_path / "model", CLASSES)
    run(tmp_path, "--ignore_mismatched_sizes", max_steps=1)
    assert "without pretrained weights" not in capsys.readouterr().out


def test_statistics_of_the_micro_batch_are_refused_on_several_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the data, which is not there."""
    save_vision_model(tmp_path)
    ranks = SimpleNamespace(count=2, index=0)
    monkeypatch.setattr(
        "hf_accum.run.start.StartedRun",
        lambda config, workload: SimpleNamespace(ranks=ranks, planned=workload(config)),
    )
    how: dict[str, Any] = {"resolution": SIDE, "lora": LoraConfig(rank=0), "dataset": "nowhere"}
    config = DrivingImagesConfig(model=str(tmp_path), batch_norm="micro_batch", **how)
    with pytest.raises(ValueError, match="`batch_norm` micro_batch: has to be frozen on 2 ranks"):
        train(config)
    with pytest.raises(ValueError, match="`batch_norm` micro_batch: has to be frozen on 2 ranks"):
        train(replace(config, task="segmentation"))


@pytest.mark.parametrize(
    ("values", "num_classes"),
    [
        ({}, 4),
        ({"task": "segmentation"}, 5),
        ({"task": "segmentation", "labels": ["a", "b", "c"]}, 3),
        ({"task": "segmentation", "dataset": "mine"}, 2),
        ({"dataset": "mine"}, 2),
    ],
)
def test_a_plan_counts_the_classes_that_are_known_and_says_where_none_are(
    tmp_path: Path, values: dict[str, Any], num_classes: int
) -> None:
    save_vision_model(tmp_path)
    how: dict[str, Any] = {"model": str(tmp_path), "resolution": SIDE, "lora": LoraConfig(rank=0)}
    work = workload(DrivingImagesConfig(**how, **values))
    config: Any = work.model.config
    assert config.num_labels == num_classes
    assert work.assumed == ("2 classes, since `labels` names none" if num_classes == 2 else "")


def test_advice_counts_the_classes_of_the_data(
    tmp_path: Path, accelerator: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    advised: list[Any] = []

    def what_would_fit(build: Any, config: Any, budget_bytes: float) -> list[str]:
        advised.append(build(config).model)
        return ["nothing"]

    monkeypatch.setattr("hf_accum.run.training.what_would_fit", what_would_fit)
    save_images(tmp_path / "data", (40,))
    said = refused(capsys, tmp_path, micro_batch_size="auto", memory_budget="1MiB", resolution=256)
    assert "not even one example of 256 patches fits" in said
    assert advised[0].config.id2label == dict(enumerate(CLASSES))


def test_a_picture_of_a_plan_has_a_bar_for_each_memory_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the numbers of the table on them: there is one length only."""
    from matplotlib.figure import Figure

    drawn: list[Any] = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **how: (drawn.append(self), savefig(self, *a, **how))[1])
    save_vision_model(tmp_path)
    flags = ["--model", str(tmp_path), "--resolution", "64", "--dataset", "mine", "--variants", "full"]
    flags += [
        "--memory",
        "100KiB,2MiB,20MiB,200GiB",
        "--picture",
        str(tmp_path / "plan.png"),
        "--task",
        "segmentation",
    ]
    command(["plan", "driving_images", *flags])
    said = capsys.readouterr().out
    assert "counted for 2 classes, since --labels names none" in said
    table = [line.split()[-2] for line in said.splitlines() if "iB" in line and " full " in line]
    (panel,) = drawn[0].axes
    assert [text.get_text() for text in panel.get_xticklabels()] == ["100 KiB", "2 MiB", "20 MiB", "200.00 GiB"]
    assert [text.get_text() or "-" for text in panel.texts] == table
    assert table[0] == "-"
    assert table[-1] == "4096+"
    heights = [int(bar.get_height()) for bar in panel.patches]
    assert heights == [0, *(int(number.rstrip("+")) for number in table[1:])]
    assert 0 < heights[1] < heights[2] < heights[3] < panel.get_ylim()[1]
    assert panel.get_lines() == []
    assert "examples of 16 patches" in panel.get_xlabel()


def save_convolutional(kind: str, folder: Path) -> None:
    torch.manual_seed(1)
    sizes: dict[str, Any] = {"hidden_sizes": [8, 16, 32, 32], "depths": [1, 1, 1, 1]}
    if kind == "resnet":
        ResNetModel(ResNetConfig(embedding_size=8, layer_type="basic", **sizes)).save_pretrained(str(folder))
    elif kind == "convnext":
        ConvNextModel(ConvNextConfig(**sizes)).save_pretrained(str(folder))
    else:
        save_vision_model(folder)


@pytest.mark.parametrize("kind", ["efficientnet", "resnet", "convnext"])
def test_the_encoder_of_a_saved_segmenter_is_loaded_as_that_of_any_model(tmp_path: Path, kind: str) -> None:
    """With the weights that it has, by transformers alone: not with random ones and a warning."""
    save_convolutional(kind, tmp_path / "encoder")
    segmenter, _ = SemanticSegmenter.from_pretrained(
        str(tmp_path / "encoder"), num_labels=3, output_loading_info=True
    )
    with torch.no_grad():
        for parameter in segmenter.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    segmenter.save_pretrained(str(tmp_path / "saved"))
    encoder, info = AutoModel.from_pretrained(str(tmp_path / "saved"), output_loading_info=True)
    assert not info["missing_keys"]
    assert {name.partition(".")[0] for name in info["unexpected_keys"]} == {"head"}
    own = segmenter.base_model.state_dict()
    assert encoder.state_dict().keys() == own.keys()
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, own[name]), name
    again = SemanticSegmenter.from_pretrained(str(tmp_path / "saved"))
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, segmenter.state_dict()[name]), name


def test_a_run_goes_on_from_the_whole_segmenter_of_another(
    tmp_path: Path, accelerator: object, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = ",".join(("background", *CLASSES))
    how: dict[str, Any] = {"task": "segmentation", "labels": labels, "max_steps": 1}
    first = run(tmp_path, **how, **{"lora.rank": 0})
    assert "new, without pretrained weights: head" in capsys.readouterr().out
    output = run(tmp_path, **how, model=first / "model", output_dir=tmp_path / "second")
    assert "without pretrained weights" not in capsys.readouterr().out
    adapted = load_adapter(SemanticSegmenter, output / "adapter", first / "model")
    assert type(adapted.base_model.model) is SemanticSegmenter


@pytest.mark.slow
def test_a_head_whose_size_does_not_follow_the_names_has_a_row_for_each_class(
    tmp_path: Path, accelerator: object, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import PvtConfig, PvtForImageClassification

    sizes: dict[str, Any] = {"hidden_sizes": [8, 8], "depths": [1, 1], "num_attention_heads": [1, 1]}
    of_stages: dict[str, Any] = {"num_encoder_blocks": 2, "sequence_reduction_ratios": [4, 1], "mlp_ratios": [2, 2]}
    of_patches: dict[str, Any] = {"patch_sizes": [4, 2], "strides": [4, 2], "image_size": SIDE}
    PvtForImageClassification(PvtConfig(**sizes, **of_stages, **of_patches)).save_pretrained(str(tmp_path / "model"))
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(str(tmp_path / "model"))
    assert "classifier.bias is (1000,) there, and has to be (3,)" in refused(capsys, tmp_path, **{"lora.rank": 0})
    folder = run(tmp_path, ignore_mismatched_sizes=True, max_steps=1, **{"lora.rank": 0})
    assert PvtForImageClassification.from_pretrained(str(folder / "model")).classifier.out_features == 3
