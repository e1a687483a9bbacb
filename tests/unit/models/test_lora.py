"""LoRA: where adapters sit, that the head is trained and saved, and what another program makes of the files."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from plain_peft import load_adapter
from tiny import ARCHITECTURES, HEADS, load_classifier, make_inputs, make_tokenizer, save_base
from torch import Tensor, nn
from trained import LABELS, ONE_OF_EACH_KIND, adapt, logits_of, train
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hf_accum.config.lora import LoraConfig
from hf_accum.errors import UserError
from hf_accum.models.lora import add_lora, checkpoint_activations, count_parameters, fold_adapters, linear_and_conv
from hf_accum.models.quantization import quantization_config, quantize_without_weights
from hf_accum.models.saving import save_model


def in_module(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def plain_name(name: str) -> str:
    """A parameter's name before peft."""
    return name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".modules_to_save.default", "")


# Where adapters sit


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_linear_layer_but_the_head_is_adapted_and_the_head_is_trained_whole(
    tmp_path: Path, architecture: str
) -> None:
    pretrained = load_classifier(save_base(tmp_path, architecture))
    head = HEADS[architecture]
    linear = {n for n, m in pretrained.model.named_modules() if isinstance(m, nn.Linear) and not in_module(n, head)}
    of_head = {n for n, _ in pretrained.model.named_parameters() if in_module(n, head)}
    assert linear
    assert of_head

    adapted = adapt(pretrained)
    wrapped = {n.removeprefix("base_model.model.") for n, m in adapted.named_modules() if isinstance(m, LoraLayer)}
    assert wrapped == linear
    trained = [plain_name(n) for n, p in adapted.named_parameters() if p.requires_grad]
    matrices = [f"{name}.lora_{side}.default.weight" for name in linear for side in "AB"]
    assert sorted(trained) == sorted([*matrices, *of_head])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_moves_adapters_and_head_and_nothing_else(tmp_path: Path, architecture: str) -> None:
    adapted = adapt(load_classifier(save_base(tmp_path, architecture)))
    before = {name: p.detach().clone() for name, p in adapted.named_parameters()}
    train(adapted)
    for name, parameter in adapted.named_parameters():
        is_trained = "lora_" in name or "modules_to_save" in name
        assert torch.equal(parameter, before[name]) is not is_trained, name


def test_a_pooler_without_pretrained_weights_is_trained_whole(tmp_path: Path) -> None:
    folder = save_base(tmp_path, "bert")
    AutoModel.from_pretrained(folder, add_pooling_layer=False).save_pretrained(tmp_path)
    adapted = adapt(load_classifier(folder))
    of_pooler = [n for n, p in adapted.named_parameters() if "pooler" in n and p.requires_grad]
    assert sorted(map(plain_name, of_pooler)) == ["bert.pooler.dense.bias", "bert.pooler.dense.weight"]
    assert all("modules_to_save" in name for name in of_pooler)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_head_that_was_trained_before_is_trained_on_and_saved(tmp_path: Path, architecture: str) -> None:
    load_classifier(save_base(tmp_path / "base", architecture)).model.save_pretrained(tmp_path / "trained")
    make_tokenizer().save_pretrained(str(tmp_path / "trained"))
    pretrained = load_classifier(str(tmp_path / "trained"))
    assert pretrained.new_modules == ()
    of_head = [n for n, _ in pretrained.model.named_parameters() if in_module(n, HEADS[architecture])]
    adapted = adapt(pretrained)
    trained_whole = [plain_name(n) for n, p in adapted.named_parameters() if p.requires_grad and "lora_" not in n]
    assert sorted(trained_whole) == sorted(of_head)
    train(adapted)
    save_model(adapted, make_tokenizer(), tmp_path / "adapter")
    again = load_adapter(AutoModelForSequenceClassification, tmp_path / "adapter", tmp_path / "trained")
    torch.testing.assert_close(logits_of(again), logits_of(adapted))


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (
            ["query", "value"],
            {f"bert.encoder.layer.{i}.attention.self.{n}" for i in range(2) for n in ("query", "value")},
        ),
        (
            r".*layer\.1\..*dense",
            {f"bert.encoder.layer.1.{n}.dense" for n in ("attention.output", "intermediate", "output")},
        ),
    ],
)
def test_targets_by_name_or_regular_expression(tmp_path: Path, targets: list[str] | str, expected: set[str]) -> None:
    adapted = adapt(load_classifier(save_base(tmp_path, "bert")), LoraConfig(rank=2, target_modules=targets))
    assert {
        n.removeprefix("base_model.model.") for n, m in adapted.named_modules() if isinstance(m, LoraLayer)
    } == expected


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "nowhere"])
def test_targets_that_the_model_does_not_have(tmp_path: Path, targets: list[str] | str) -> None:
    pretrained = load_classifier(save_base(tmp_path, "bert"))
    with pytest.raises(
        ValueError, match=r"^`lora.target_modules` .*has to match modules of BertForSeq.*dense.*query"
    ):
        adapt(pretrained, LoraConfig(rank=2, target_modules=targets))


def test_four_bit_layers_are_targets_as_plain_ones_are() -> None:
    """Of which the weights are kept in another shape."""
    sizes: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 64}
    config: Any = ViTConfig(num_hidden_layers=1, image_size=32, **sizes)
    with torch.device("meta"):
        model, plain = ViTForImageClassification(config), ViTForImageClassification(config)
    options = quantization_config("nf4", ["classifier"])
    assert options is not None
    quantize_without_weights(model, options, torch.float32)
    targets = linear_and_conv(model, ["classifier"], rank=2)
    assert targets == linear_and_conv(plain, ["classifier"], rank=2)
    kinds = (nn.Linear, nn.Conv2d)
    assert targets == [n for n, m in plain.named_modules() if isinstance(m, kinds) and n != "classifier"]
    assert len(targets) > 6
    with pytest.raises(ValueError, match="no layer of ViTForImageClassification has more weights than an adapter"):
        linear_and_conv(model, ["classifier"], rank=64)


def test_only_convolutions_that_peft_follows_are_targets() -> None:
    def conv(**how: Any) -> nn.Conv2d:
        return nn.Conv2d(16, 16, 3, **how)

    model = nn.Sequential(conv(), conv(groups=16), conv(dilation=2), conv(stride=2, padding=1))
    assert linear_and_conv(model, [], rank=2) == ["0", "3"]


def test_an_adapter_adds_alpha_over_rank_times_its_matrices(tmp_path: Path) -> None:
    adapted = adapt(load_classifier(save_base(tmp_path, "bert")), LoraConfig(rank=4, alpha=10.0)).eval()
    layer = adapted.base_model.model.bert.encoder.layer[0].attention.self.query
    nn.init.normal_(layer.lora_B["default"].weight)
    inputs = torch.randn(5, 16)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.testing.assert_close(layer(inputs), layer.base_layer(inputs) + 10.0 / 4 * inputs @ a.T @ b.T)


def test_dropout_of_adapters(tmp_path: Path) -> None:
    folder = save_base(tmp_path, "bert")

    def rates(lora_dropout: float, override: float | None) -> set[float]:
        pretrained = load_classifier(folder, dropout=override)
        adapted = adapt(pretrained, LoraConfig(rank=2, dropout=lora_dropout), dropout=override)
        return {m.p for n, m in adapted.named_modules() if isinstance(m, nn.Dropout) and "lora_" in n}

    assert rates(0.25, None) == {0.25}
    assert rates(0.25, 0.5) == {0.5}
    assert rates(0.25, 0.0) == set()  # peft makes no layer for it
    assert rates(0.0, 0.5) == {0.5}
    assert rates(0.0, None) == set()  # peft puts no layer there


@pytest.mark.parametrize("architecture", ONE_OF_EACH_KIND)
def test_what_is_trained_is_float32_above_a_bfloat16_base(tmp_path: Path, architecture: str) -> None:
    pretrained = load_classifier(save_base(tmp_path, architecture))
    model: Any = pretrained.model
    model.to(torch.bfloat16)
    adapted = adapt(pretrained)
    for name, parameter in adapted.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name
    assert any(p.dtype == torch.bfloat16 for p in adapted.parameters())


def test_parameters_are_counted(tmp_path: Path) -> None:
    pretrained = load_classifier(save_base(tmp_path, "bert"))
    total = sum(p.numel() for p in pretrained.model.parameters())
    assert count_parameters(pretrained.model) == (total, total)
    adapted = adapt(pretrained, LoraConfig(rank=2, target_modules=["query"]))
    matrices, head = 2 * 2 * (16 + 16), 16 * 3 + 3  # layers x rank x (in + out)
    # peft keeps the head it found beside the one that is trained.
    assert count_parameters(adapted) == (matrices + head, total + matrices + head)


# Gradient checkpointing


def gradients(folder: str, lora: LoraConfig, *, is_checkpointing: bool) -> tuple[dict[str, Tensor], int]:
    """Gradients of one step with dropout, and how often a part of the first layer ran."""
    torch.manual_seed(3)
    pretrained = load_classifier(folder)
    model = adapt(pretrained, lora)
    torch.manual_seed(4)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    if is_checkpointing:
        checkpoint_activations(pretrained.model)
    num_runs = 0

    def count(*_: Any) -> None:
        nonlocal num_runs
        num_runs += 1

    layers = next(m for m in pretrained.model.modules() if isinstance(m, nn.ModuleList))
    linear = next(m for m in layers[0].modules() if isinstance(m, nn.Linear))
    linear.register_forward_pre_hook(count)
    torch.manual_seed(5)
    F.cross_entropy(model(**make_inputs()).logits, LABELS).backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    return {name: gradient for name, gradient in found.items() if gradient is not None}, num_runs


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("rank", [2, 0])
def test_gradients_with_checkpointing_are_those_without(tmp_path: Path, architecture: str, rank: int) -> None:
    folder = save_base(tmp_path, architecture)
    lora = LoraConfig(rank=rank, dropout=0.1)
    plain, num_runs = gradients(folder, lora, is_checkpointing=False)
    checkpointed, num_runs_checkpointed = gradients(folder, lora, is_checkpointing=True)
    assert (num_runs, num_runs_checkpointed) == (1, 2)  # it really computed again
    assert checkpointed.keys() == plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-5, atol=1e-7)
        if "lora_" in name:
            assert gradient.abs().max() > 0, name
    assert rank == 0 or sum("lora_" in name for name in plain) >= 8


def test_an_architecture_without_checkpointing_is_refused(tmp_path: Path) -> None:
    model = load_classifier(save_base(tmp_path, "bert")).model
    model.supports_gradient_checkpointing = False
    with pytest.raises(
        ValueError, match="`gradient_checkpointing` true: BertForSequenceClassification has no support"
    ):
        checkpoint_activations(model)


def test_an_adapted_model_is_peft_s(tmp_path: Path) -> None:
    assert isinstance(adapt(load_classifier(save_base(tmp_path, "bert"))), PeftModel)


def test_folded_adapters_give_the_same_by_the_base_layers_alone(tmp_path: Path) -> None:
    adapted = adapt(load_classifier(save_base(tmp_path, "bert")))
    train(adapted)
    before = logits_of(adapted)
    folded = fold_adapters(adapted)
    assert torch.allclose(logits_of(folded), before, atol=1e-5)
    plain = load_classifier(save_base(tmp_path, "bert")).model
    assert [type(module) for module in folded.modules()] == [type(module) for module in plain.modules()]


def small_mobilenet(**more: Any) -> MobileNetV2ForImageClassification:
    config = MobileNetV2Config(depth_multiplier=0.25, **more)
    with torch.device("meta"):
        return MobileNetV2ForImageClassification(config)


def test_a_model_that_reads_the_strides_of_its_convolutions_is_refused_before_its_forward_fails() -> None:
    with pytest.raises(UserError, match=r"`lora.rank` 2: mobilenet_v2 reads the strides .*`lora.rank 0` trains all"):
        add_lora(small_mobilenet(), LoraConfig(rank=2, target_modules="all-linear-and-conv"), task_type=None)


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups")
def test_depthwise_convolutions_are_left_out_or_named() -> None:
    plain = small_mobilenet(tf_padding=False)
    adapted = add_lora(plain, LoraConfig(rank=2, target_modules="all-linear-and-conv"), task_type=None)
    bases = [m for n, m in adapted.named_modules() if n.endswith(".base_layer") and isinstance(m, nn.Conv2d)]
    assert {conv.groups for conv in bases} == {1}
    assert len(bases) > 20
    with pytest.raises(
        UserError, match=r"has to leave out convolutions by groups.* all-linear-and-conv leaves them out"
    ):
        add_lora(small_mobilenet(), LoraConfig(rank=2, target_modules=["convolution"]), task_type=None)


def test_convolutions_with_dilation_are_named() -> None:
    config = MobileNetV2Config(depth_multiplier=0.25, output_stride=8, finegrained_output=False)
    with torch.device("meta"):
        model = MobileNetV2ForImageClassification(config)
    wide = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.dilation != (1, 1)]
    assert wide
    for name, module in model.named_modules():
        if name in wide:
            module.groups = 1  # type: ignore[assignment] (what it is refused for is the dilation alone)
    with pytest.raises(UserError, match=f"has to leave out convolutions with dilation, as .*{re.escape(wide[0])}"):
        add_lora(model, LoraConfig(rank=2, target_modules=wide[:1]), task_type=None)
