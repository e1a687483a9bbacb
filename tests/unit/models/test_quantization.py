"""Four-bit weights: which layers have them, what is trained through them, and what they take."""

import copy
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import ARCHITECTURES, CONFIGS, HEADS, load_classifier, make_inputs, save_base
from tiny_vision import save_vision_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from traced_cases import traces_of
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForSequenceClassification

from hf_accum.config.lora import LoraConfig
from hf_accum.config.optimization import OptimizationFlags
from hf_accum.config.recipe import RecipeConfig
from hf_accum.device.live_bytes import LiveBytes, sum_bytes, tensors_of
from hf_accum.errors import UserError
from hf_accum.models.loading import Pretrained, build_without_weights, load_model
from hf_accum.models.lora import add_lora
from hf_accum.models.optimizer import build_optimizer
from hf_accum.models.quantization import quantization_config
from hf_accum.models.tokenizers import load_tokenizer
from hf_accum.tasks.labels import LabelColumn
from hf_accum.tasks.text_classification.task import TextClassification, build_objective
from hf_accum.tuner import workload
from hf_accum.tuner.prediction import predict
from hf_accum.tuner.tracing import Tracer
from hf_accum.tuner.workload import Workload
from recipes.clinical_classification import ClinicalClassificationConfig, main
from recipes.embedded.models import minilm

CPU = torch.device("cpu")
LORA = LoraConfig(rank=2)
NF4 = 16  # values
BLOCK = 64  # weights of one scale


def four_bit_layers(model: nn.Module) -> dict[str, Any]:
    from bitsandbytes.nn import Linear4bit

    return {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}


def layout(model: nn.Module) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors]


def adapted(pretrained: Pretrained, lora: LoraConfig = LORA) -> nn.Module:
    return add_lora(pretrained.model, lora, task_type="SEQ_CLS", new_modules=pretrained.new_modules)


def values_of(layer: Any) -> Tensor:
    """The values that a layer's codes stand for, before they are scaled: two in a byte, the first one high."""
    packed = layer.weight.data.flatten().long()
    codes = torch.stack([packed >> 4, packed & 15], dim=1).flatten()
    return layer.weight.quant_state.code[codes[: layer.weight.quant_state.shape.numel()]]


def scales_of(layer: Any) -> Tensor:
    """One for each block of weights: in 8 bits, with a scale for each 256 and an offset for all."""
    state = layer.weight.quant_state
    again = state.state2
    return again.code[state.absmax.long()] * again.absmax.repeat_interleave(256)[: len(state.absmax)] + state.offset


def unpacked(layer: Any) -> Tensor:
    """The weights that a layer's codes stand for."""
    values = values_of(layer)
    scaled = values * scales_of(layer).repeat_interleave(BLOCK)[: len(values)]
    return scaled.view(layer.weight.quant_state.shape)


def save_wide(folder: Path, architecture: str) -> str:
    """With rows of whole blocks: bitsandbytes 0.50.2 unpacks rows of 16 or 32 wrongly on CPUs with AVX512."""
    save_base(folder, architecture)  # its tokenizer
    config = copy.deepcopy(CONFIGS[architecture])
    for name, size in {
        "hidden_size": BLOCK,
        "intermediate_size": 2 * BLOCK,
        "embedding_size": BLOCK,
        "pooler_hidden_size": BLOCK,
    }.items():
        if hasattr(config, name):
            setattr(config, name, size)
    if architecture == "distilbert":
        config.dim, config.hidden_dim = BLOCK, 2 * BLOCK  # type: ignore[attr-defined]
    if architecture == "llama":
        config.head_dim = BLOCK // 2  # type: ignore[attr-defined]
    AutoModel.from_config(config).save_pretrained(folder)
    return str(folder)


# Loading


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_linear_layers_but_the_head_s_have_four_bits(tmp_path: Path, architecture: str) -> None:
    folder = save_base(tmp_path, architecture)
    plain, quantised = (load_classifier(folder, quantization=how) for how in ("none", "nf4"))
    assert quantised.new_modules == plain.new_modules == HEADS[architecture]
    layers = four_bit_layers(quantised.model)
    linear = {name: m for name, m in plain.model.named_modules() if isinstance(m, nn.Linear)}
    of_head = {name for name in linear if name.split(".")[0] in HEADS[architecture]}
    assert of_head
    assert set(layers) == set(linear) - of_head
    modules = dict(quantised.model.named_modules())
    for name in of_head:
        assert type(modules[name]) is nn.Linear
    for name, layer in layers.items():
        assert layer.weight.dtype == torch.uint8
        assert layer.weight.nbytes == linear[name].weight.numel() / 2
        assert layer.compute_dtype == torch.float32
    others = {n: p for n, p in quantised.model.named_parameters() if n.rpartition(".")[0] not in layers}
    assert {p.dtype for p in others.values()} == {torch.float32}
    assert quantised.model.training


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_all_linear_layers_of_an_encoder_without_a_head_have_four_bits(tmp_path: Path, architecture: str) -> None:
    folder = save_base(tmp_path, architecture)
    linear = {n for n, m in AutoModel.from_pretrained(folder).named_modules() if isinstance(m, nn.Linear)}
    loaded = load_model(AutoModel, folder, load_tokenizer(folder), max_length=16, quantization="nf4").model
    laid_out = build_without_weights(AutoModel, folder, max_length=16, quantization="nf4")
    assert set(four_bit_layers(loaded)) == set(four_bit_layers(laid_out)) == linear
    assert layout(loaded) == layout(laid_out)


def test_a_model_without_a_layer_to_quantise_is_refused(tmp_path: Path) -> None:
    save_vision_model(tmp_path)  # convolutions, and a linear head
    with pytest.raises(ValueError, match=r"`quantization` nf4: EfficientNet.* has no linear layer beside its head"):
        load_model(AutoModelForImageClassification, str(tmp_path), None, max_length=16, quantization="nf4")
    with pytest.raises(ValueError, match=r"`quantization` nf4: EfficientNet.* has no linear layer beside its head"):
        build_without_weights(AutoModelForImageClassification, str(tmp_path), max_length=16, quantization="nf4")


def test_four_bit_weights_are_the_nearest_of_their_block_s_sixteen_values(tmp_path: Path) -> None:
    folder = save_base(tmp_path, "bert")
    plain, quantised = (load_classifier(folder, quantization=how).model for how in ("none", "nf4"))
    weights: dict[str, Any] = dict(plain.named_modules())
    for name, layer in four_bit_layers(quantised).items():
        exact = weights[name].weight.detach().flatten()
        values = layer.weight.quant_state.code
        assert (len(values), values.min(), values.max()) == (NF4, -1, 1)
        blocks = exact.view(-1, BLOCK)
        scales = blocks.abs().amax(1)
        # Twice quantised: 8 bits hold the scales' differences from their mean to 1 % of the greatest.
        differences = scales - scales.mean()
        torch.testing.assert_close(scales_of(layer), scales, atol=0.01 * float(differences.abs().max()), rtol=0)
        nearest = (blocks[:, :, None] - scales[:, None, None] * values).abs().amin(2).flatten()
        found = values_of(layer) * scales.repeat_interleave(BLOCK)
        torch.testing.assert_close((found - exact).abs(), nearest, atol=1e-5, rtol=0)
        assert torch.equal(layer.bias, weights[name].bias)


def test_everything_trained_is_float32_and_no_four_bit_weight_is(tmp_path: Path) -> None:
    model = adapted(load_classifier(save_base(tmp_path, "bert"), quantization="nf4"))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    layers = four_bit_layers(model)
    assert {p.dtype for p in trained.values()} == {torch.float32}
    adapters = {name for name in trained if ".lora_" in name}
    assert len(adapters) == 2 * len(layers) > 0
    assert {name.rpartition(".modules_to_save.")[0].rpartition(".")[2] for name in set(trained) - adapters} == {
        "classifier"
    }


def test_in_bf16_the_layers_are_unpacked_in_bf16(tmp_path: Path) -> None:
    """And not in float32, which would then be cast: a copy of each layer, twice as large."""
    model = load_classifier(
        save_wide(tmp_path, "llama"), quantization="nf4", dtype=torch.bfloat16, precision="bf16"
    ).model
    for layer in four_bit_layers(model).values():
        assert layer.weight.quant_state.dtype == layer.compute_dtype == torch.bfloat16
        assert layer.weight.quant_state.nested


# Training


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("evaluates", [False, True], ids=["", "after evaluation"])
def test_gradients_are_those_of_the_weights_that_the_codes_stand_for(
    tmp_path: Path, architecture: str, evaluates: bool
) -> None:
    """Also after a forward without gradients, in which bitsandbytes repacks weights for some processors."""
    folder = save_wide(tmp_path, architecture)
    torch.manual_seed(1)
    quantised = adapted(load_classifier(folder, quantization="nf4", dropout=0.0))
    plain = adapted(load_classifier(folder, dropout=0.0))
    with torch.no_grad():
        for name, parameter in quantised.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)  # zero at first: no gradient would reach the other matrix
        modules: dict[str, Any] = dict(plain.named_modules())
        for name, layer in four_bit_layers(quantised).items():
            modules[name].weight.copy_(unpacked(layer))
        others = dict(quantised.named_parameters())
        for name, parameter in plain.named_parameters():
            if parameter.shape == others[name].shape and others[name].is_floating_point():
                parameter.copy_(others[name])
    inputs, labels = make_inputs(), torch.tensor([0, 1, 2])
    if evaluates:
        quantised.eval()
        with torch.inference_mode():
            logits = quantised(**inputs).logits
            quantised(**make_inputs((5,)))
        torch.testing.assert_close(logits, plain.eval()(**inputs).logits, atol=1e-4, rtol=1e-4)
        plain.train()
        quantised.train()
    for model in (plain, quantised):
        cross_entropy(model(**inputs).logits, labels, reduction="sum").backward()
    num_adapters = 0
    for name, parameter in plain.named_parameters():
        gradient = others[name].grad
        if not parameter.requires_grad:
            assert gradient is None
            continue
        assert gradient is not None, name
        assert parameter.grad is not None
        assert gradient.isfinite().all()
        num_adapters += ".lora_" in name
        assert gradient.any(), name
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-4, rtol=1e-3)
    assert num_adapters == 2 * len(four_bit_layers(quantised))


def test_a_few_steps_learn(tmp_path: Path) -> None:
    model = adapted(load_classifier(save_wide(tmp_path, "bert"), quantization="nf4", dropout=0.0))
    before = {name: layer.weight.data.clone() for name, layer in four_bit_layers(model).items()}
    optimizer = build_optimizer(model, OptimizationFlags(learning_rate=1e-2, weight_decay=0.0))
    losses = []
    for _ in range(12):
        loss = cross_entropy(model(**make_inputs()).logits, torch.tensor([0, 1, 2]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        model.eval()
        with torch.inference_mode():
            model(**make_inputs())
        model.train()
    assert losses[-1] < losses[0] / 2
    assert all(torch.equal(layer.weight.data, before[name]) for name, layer in four_bit_layers(model).items())


# Without weights


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("lora", [None, LORA], ids=["", "LoRA"])
def test_the_layout_without_weights_is_that_of_the_loaded_model(
    tmp_path: Path, architecture: str, lora: LoraConfig | None
) -> None:
    folder = save_base(tmp_path, architecture)
    pretrained = load_classifier(folder, quantization="nf4")
    loaded: nn.Module = pretrained.model
    built: nn.Module = build_without_weights(
        AutoModelForSequenceClassification, folder, max_length=16, quantization="nf4", num_labels=3
    )
    if lora is not None:
        loaded, built = adapted(pretrained, lora), adapted(Pretrained(built, pretrained.new_modules), lora)  # type: ignore[arg-type]
        trained = [[name for name, p in m.named_parameters() if p.requires_grad] for m in (built, loaded)]
        assert trained[0] == trained[1]
    assert layout(built) == layout(loaded)
    assert {p.device.type for p in built.parameters()} == {"meta"}
    shapes = [[(tuple(t.shape), t.dtype) for t in tensors_of(m)] for m in (built, loaded)]
    assert shapes[0] == shapes[1]
    assert sum_bytes(tensors_of(built)) == sum_bytes(tensors_of(loaded))
    assert len(four_bit_layers(built)) == len(four_bit_layers(loaded)) > 0


def test_the_model_without_weights_does_the_same_operations_as_the_loaded_one(tmp_path: Path) -> None:
    folder = save_base(tmp_path, "bert")
    pretrained = load_classifier(folder, quantization="nf4")
    built = build_without_weights(
        AutoModelForSequenceClassification, folder, max_length=16, quantization="nf4", num_labels=3
    )
    models = adapted(pretrained), adapted(Pretrained(built, pretrained.new_modules))
    loaded, without = ([type(module) for module in model.modules()] for model in models)
    assert without == loaded
    sizes = [(1, 16), (2, 16), (5, 7)]
    traces = [traces_of(Tracer(workload_of(model, 16)), sizes) for model in models]
    assert traces[0] == traces[1]


def test_sizes_that_do_not_divide_into_blocks_are_laid_out_alike(tmp_path: Path) -> None:
    """3 x 7 weights: half a byte, and a part of a block, are taken whole."""
    import bitsandbytes as bnb
    from transformers import BertConfig, BertForSequenceClassification

    sizes: dict[str, Any] = {"num_attention_heads": 1, "num_hidden_layers": 1, "max_position_embeddings": 8}
    config = BertConfig(vocab_size=44, hidden_size=7, intermediate_size=3, **sizes)
    save_base(tmp_path, "bert")
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    loaded = load_classifier(str(tmp_path), quantization="nf4", max_length=8, num_labels=2).model
    built = build_without_weights(
        AutoModelForSequenceClassification, str(tmp_path), max_length=8, quantization="nf4", num_labels=2
    )
    assert layout(built) == layout(loaded)
    assert sum_bytes(tensors_of(built)) == sum_bytes(tensors_of(loaded))
    up = next(m for n, m in loaded.named_modules() if n.endswith("intermediate.dense"))
    assert isinstance(up, bnb.nn.Linear4bit)
    assert up.weight.nbytes == 11


# What it takes


def workload_of(model: nn.Module, max_length: int) -> Workload:
    labels = LabelColumn("label", "single_label_classification", ("a", "b", "c"))
    task = TextClassification("text", labels, build_objective(labels), None, max_length)
    return workload.workload_of(model, task, RecipeConfig())


def in_training(work: Workload) -> Iterator[Tensor]:
    """All that is alive between two micro-batches, after the first step."""
    optimizer = work.optimizer(work.model)
    work.forward_backward(1, 4, CPU)
    optimizer.step()
    yield from tensors_of(work.model)
    yield from (p.grad for p in work.model.parameters() if p.grad is not None)
    yield from (tensor for state in optimizer.state.values() for tensor in state.values())


def check_peaks(loaded: nn.Module, built: nn.Module, max_length: int, sizes: list[tuple[int, int]]) -> None:
    """Predicted from the model without weights, traced at each size, and counted on real tensors."""
    work, without = workload_of(loaded, max_length), workload_of(built, max_length)
    prediction = predict(without)
    tracer = Tracer(without)
    for size, trace in zip(sizes, traces_of(tracer, sizes), strict=True):
        assert 1.00 <= prediction.training.bytes_at(*size) / max(trace.training) <= 1.05
        assert 1.00 <= prediction.evaluation.bytes_at(*size) / max(trace.evaluation) <= 1.05
    assert tracer.fixed == prediction.fixed
    held = list(in_training(work))
    assert prediction.fixed.total == sum_bytes(held)
    for size in sizes:
        with LiveBytes(held=held) as live:
            work.forward_backward(*size, CPU)
        gc.collect()
        assert 1.00 <= prediction.training.bytes_at(*size) / live.peak_bytes <= 1.05, size
        with LiveBytes(held=held) as live:
            work.evaluate(*size, CPU)
        assert 1.00 <= prediction.evaluation.bytes_at(*size) / live.peak_bytes <= 1.05, size
        with LiveBytes(held=held) as live:  # an evaluation changes nothing of what training needs
            work.forward_backward(*size, CPU)
        assert 1.00 <= prediction.training.bytes_at(*size) / live.peak_bytes <= 1.05, size


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["bert", pytest.param("deberta", marks=pytest.mark.by_hand), "llama"])
def test_the_predicted_peak_is_what_real_four_bit_weights_take(tmp_path: Path, architecture: str) -> None:
    folder = save_base(tmp_path, architecture)
    pretrained = load_classifier(folder, quantization="nf4")
    built = build_without_weights(
        AutoModelForSequenceClassification, folder, max_length=16, quantization="nf4", num_labels=3
    )
    loaded, without = adapted(pretrained), adapted(Pretrained(built, pretrained.new_modules))
    check_peaks(loaded, without, 16, [(1, 16), (2, 16), (3, 7), (9, 16), (20, 5)])


@pytest.mark.slow
def test_the_predicted_peak_of_minilm_in_four_bits_is_what_it_takes() -> None:
    tokenizer = load_tokenizer(minilm())
    pretrained = load_model(
        AutoModelForSequenceClassification, minilm(), tokenizer, max_length=64, quantization="nf4", num_labels=3
    )
    built = build_without_weights(
        AutoModelForSequenceClassification, minilm(), max_length=64, quantization="nf4", num_labels=3
    )
    loaded = adapted(pretrained, LoraConfig(rank=16))
    without = adapted(Pretrained(built, pretrained.new_modules), LoraConfig(rank=16))
    assert len(four_bit_layers(loaded)) == 6 * 6 + 1
    check_peaks(loaded, without, 64, [(1, 64), (2, 64), (5, 23)])


# What is refused


def test_four_bit_weights_cannot_be_trained_whole(capsys: pytest.CaptureFixture[str]) -> None:
    said = "`quantization` nf4: has to be none with `lora.rank 0`: quantised weights cannot be trained"
    with pytest.raises(UserError, match=f"^{said}$"):
        ClinicalClassificationConfig(quantization="nf4", lora=LoraConfig(rank=0))
    with pytest.raises(SystemExit) as ended:
        main(["--quantization", "nf4", "--lora.rank", "0"])
    assert ended.value.code == 2
    told = "--quantization nf4: has to be none with --lora.rank 0: quantised weights cannot be trained"
    assert f"error: {told}\n" in capsys.readouterr().err


def test_without_bitsandbytes_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_accum.models.quantization.find_spec", lambda name: None)
    folder = save_base(tmp_path, "bert")
    assert quantization_config("none", []) is None
    said = "`quantization` nf4: needs bitsandbytes: pip install bitsandbytes"
    with pytest.raises(ValueError, match=f"^{said}$"):
        load_classifier(folder, quantization="nf4")
    with pytest.raises(ValueError, match=said) as caught:
        build_without_weights(AutoModelForSequenceClassification, folder, max_length=16, quantization="nf4")
    assert "has to be a local folder" not in str(caught.value)
    assert load_classifier(folder).model.config.model_type == CONFIGS["bert"].model_type


@pytest.mark.parametrize(
    ("precision", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_four_bit_weights_are_multiplied_in_the_run_s_precision(
    tmp_path: Path, precision: str, dtype: torch.dtype
) -> None:
    folder = save_base(tmp_path, "bert")
    loaded = load_classifier(folder, quantization="nf4", precision=precision).model
    built = build_without_weights(
        AutoModelForSequenceClassification,
        folder,
        max_length=16,
        quantization="nf4",
        precision=precision,
        num_labels=3,
    )
    for model in (loaded, built):
        assert {layer.compute_dtype for layer in four_bit_layers(model).values()} == {dtype}
    assert layout(built) == layout(loaded)
