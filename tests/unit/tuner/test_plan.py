"""Plans: their numbers against counts by hand, brute force, and real models of the same config."""

import re
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from launching import ROOT, run
from torch import nn
from traced_cases import traces_of
from transformers import AlbertConfig, AutoModelForSequenceClassification, BertConfig, LlamaConfig
from workload_cases import of_sizes

from hf_accum.accumulation.capacity import Peak
from hf_accum.byte_sizes import format_bytes
from hf_accum.cli.parser import parse
from hf_accum.config.flags import as_flags, flag_names
from hf_accum.config.lora import LoraConfig
from hf_accum.device.live_bytes import LiveBytes, sum_bytes
from hf_accum.tasks.vision.inputs import PATCHES, made_up_images, num_patches
from hf_accum.tuner.plan import VARIANTS, Variant, lengths_of, plan, what_would_fit
from hf_accum.tuner.prediction import Prediction
from hf_accum.tuner.reserved import ReservedBytes
from hf_accum.tuner.tracing import CannotTrace, FixedBytes, Tracer
from hf_accum.tuner.workload import Workload
from recipes.clinical_classification import ClinicalClassificationConfig, workload
from recipes.driving_images import DrivingImagesConfig

CPU = torch.device("cpu")
MAX_LENGTH = 64
VOCAB, HIDDEN, INTERMEDIATE, LAYERS = 1000, 192, 384, 2
RANK = 8
CARD = (8, 6)
NAMES = {
    "full": "full",
    "full_checkpointing": "full + checkpointing",
    "lora": "LoRA",
    "lora_checkpointing": "LoRA + checkpointing",
    "qlora": "QLoRA",
    "qlora_checkpointing": "QLoRA + checkpointing",
}
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": INTERMEDIATE,
    "max_position_embeddings": MAX_LENGTH,
}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with nothing but a config."""
    folder = tmp_path_factory.mktemp("bert")
    BertConfig(**_SIZES).save_pretrained(folder)
    assert [file.name for file in folder.iterdir()] == ["config.json"]
    return str(folder)


@pytest.fixture(scope="module")
def albert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of an architecture that transformers cannot checkpoint."""
    folder = tmp_path_factory.mktemp("albert")
    AlbertConfig(**_SIZES, embedding_size=16).save_pretrained(folder)
    return str(folder)


def config_of(model: str, **values: Any) -> ClinicalClassificationConfig:
    return ClinicalClassificationConfig(
        **{"model": model, "max_length": MAX_LENGTH, "lora": LoraConfig(rank=RANK)} | values
    )


@cache
def planned(model: str) -> tuple[dict[str, Variant], dict[str, tuple[ClinicalClassificationConfig, Workload]]]:
    """All variants of a model by their keys, and what was built for each."""
    built: list[tuple[ClinicalClassificationConfig, Workload]] = []

    def build(config: ClinicalClassificationConfig) -> Workload:
        built.append((config, workload(config)))
        return built[-1][1]

    found, impossible = plan(build, config_of(model), VARIANTS)
    assert impossible == []
    return dict(zip(VARIANTS, found, strict=True)), dict(zip(VARIANTS, built, strict=True))


# Where the bytes go


def linear_sizes() -> list[tuple[int, int]]:
    """(in, out) of each linear layer of the encoder: four of attention, two of the rest, and the pooler."""
    layer = [(HIDDEN, HIDDEN)] * 4 + [(HIDDEN, INTERMEDIATE), (INTERMEDIATE, HIDDEN)]
    return layer * LAYERS + [(HIDDEN, HIDDEN)]


def bytes_by_hand(variant: str) -> dict[str, int]:
    """Of a BERT classifier of two labels, from its sizes."""
    head = HIDDEN * 2 + 2
    norms = 2 * HIDDEN * (1 + 2 * LAYERS)
    embeddings = (VOCAB + MAX_LENGTH + 2) * HIDDEN
    biases = sum(n_out for _, n_out in linear_sizes())
    matrices = sum(n_in * n_out for n_in, n_out in linear_sizes())
    buffers = 2 * MAX_LENGTH * 8  # a position and a token type for each, int64
    if variant.startswith("full"):
        trained = embeddings + norms + biases + matrices + head
        num_trained = 3 + 2 * (1 + 2 * LAYERS) + 2 * len(linear_sizes()) + 2
        weights = 4 * trained + buffers
    else:
        adapters = sum(RANK * (n_in + n_out) for n_in, n_out in linear_sizes())
        trained, num_trained = adapters + head, 2 * len(linear_sizes()) + 2
        others = embeddings + norms + biases + head  # that head is frozen: a copy of it is trained
        weights = 4 * (others + trained) + buffers
        if variant.startswith("qlora"):
            # Half a byte for each, a byte for each 64, a float32 for each 256 of those, an offset, and the values
            # of the codes of 4 and of 8 bits.
            scales = [n_in * n_out // 64 for n_in, n_out in linear_sizes()]
            weights += matrices // 2 + sum(number + 4 * -(-number // 256) for number in scales)
            weights += len(scales) * 4 * (1 + 16 + 256)
        else:
            weights += 4 * matrices
    return {
        "weights": weights,
        "gradients": 4 * trained,
        "optimizer state": 2 * 4 * trained + 4 * num_trained,  # AdamW: two moments, and the number of the step
    }


@pytest.mark.parametrize("key", VARIANTS)
def test_what_is_always_there_is_what_a_count_by_hand_says(bert: str, key: str) -> None:
    variant = planned(bert)[0][key]
    by_hand = bytes_by_hand(key)
    for num_examples, length in ((1, MAX_LENGTH), (7, 20)):
        parts = variant.parts(num_examples, length)
        assert {name: parts[name] for name in by_hand} == by_hand
    # The fused step needs nothing beside.
    assert variant.prediction.fixed.floor == sum(by_hand.values()) == variant.prediction.fixed.optimizer_peak


@pytest.mark.parametrize("key", VARIANTS)
@pytest.mark.parametrize("size", [(1, MAX_LENGTH), (1, 9), (2, MAX_LENGTH), (50, 17), (300, MAX_LENGTH)])
def test_the_parts_add_up_to_the_peak_of_a_trace(bert: str, key: str, size: tuple[int, int]) -> None:
    variants, built = planned(bert)
    parts = variants[key].parts(*size)
    (trace,) = traces_of(Tracer(built[key][1]), [size])
    assert list(parts) == ["weights", "gradients", "optimizer state", "activations", "temporaries"]
    assert all(num_bytes >= 0 for num_bytes in parts.values())
    peak = sum(parts.values())
    assert peak == variants[key].prediction.training.bytes_at(*size) == variants[key].needed_bytes(*size)
    assert 1.00 <= peak / max(trace.training) <= 1.05
    if size != (1, 9):  # where a single example takes more than several, that goes by the square of its length
        assert peak == max(trace.training)
    always = parts["weights"] + parts["gradients"] + parts["optimizer state"]
    assert parts["activations"] == trace.training[trace.forward_end] - always


@pytest.mark.parametrize("key", ["full", "full_checkpointing", "lora", "lora_checkpointing"])
def test_a_real_model_of_the_config_has_and_needs_what_is_planned(bert: str, key: str) -> None:
    """Real weights, gradients and optimizer state; 4-bit ones have a test of their own."""
    variants, built = planned(bert)
    work = built[key][1]
    work.model.to_empty(device=CPU)
    for tensor in [*work.model.parameters(), *work.model.buffers()]:
        nn.init.zeros_(tensor.data)
    trained = [p for p in work.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    for _ in range(2):
        work.forward_backward(2, MAX_LENGTH, CPU)
        optimizer.step()
    state = [tensor for of in optimizer.state.values() for tensor in of.values()]
    gradients = [p.grad for p in trained if p.grad is not None]
    held = [*work.model.parameters(), *work.model.buffers()]
    parts = variants[key].parts(3, 40)
    assert parts["weights"] == sum_bytes(held)
    assert parts["gradients"] == sum_bytes(gradients)
    assert parts["optimizer state"] == sum_bytes(state)
    for size in ((1, MAX_LENGTH), (3, 40), (11, MAX_LENGTH)):
        with LiveBytes(held=[*held, *gradients, *state]) as live:
            work.forward_backward(*size, CPU)
        assert 1.00 <= variants[key].needed_bytes(*size) / live.peak_bytes <= 1.05
    work.model.to("meta")


# The largest that fits


def largest_by_brute_force(variant: Variant, length: int, budget_bytes: float, at_most: int) -> int:
    fixed = variant.prediction.fixed
    floor = max(fixed.weights + fixed.gradients + fixed.optimizer_state, fixed.optimizer_peak)
    fitting = [
        number
        for number in range(1, at_most + 1)
        if max(floor, variant.prediction.training.bytes_at(number, length)) <= budget_bytes
    ]
    return max(fitting, default=0)


@pytest.mark.parametrize("key", VARIANTS)
def test_the_largest_is_that_of_brute_force(bert: str, key: str) -> None:
    variant = planned(bert)[0][key]

    @settings(max_examples=100)
    @given(st.integers(2, MAX_LENGTH), st.integers(1, 40), st.integers(1, 40), st.integers(-1, 1))
    def check(length: int, number: int, at_most: int, by: int) -> None:
        for budget in (variant.needed_bytes(number, length) + by, variant.prediction.fixed.floor + by):
            expected = largest_by_brute_force(variant, length, budget, at_most)
            assert variant.largest(length, budget, at_most) == expected

    check()


def test_nothing_fits_below_what_the_optimizer_step_needs() -> None:
    """A floor that is above what a few examples need."""
    peak = Peak(((100.0, 10.0),), MAX_LENGTH)
    fixed = FixedBytes(weights=50, gradients=20, optimizer_state=30, optimizer_peak=180)
    variant = Variant("made up", Prediction(peak, peak, peak, fixed, []), MAX_LENGTH)
    assert variant.prediction.fixed.floor == 180
    assert [variant.needed_bytes(number, MAX_LENGTH) for number in (1, 8, 9, 20)] == [180, 180, 190, 300]
    assert [variant.largest(MAX_LENGTH, budget, 12) for budget in (99, 110, 179, 180, 189, 190, 500)] == [
        *(0, 0, 0),
        *(8, 8, 9, 12),
    ]
    assert (
        Variant("", replace(variant.prediction, fixed=replace(fixed, optimizer_peak=60)), 1).prediction.fixed.floor
        == 100
    )


# The variants


@pytest.mark.parametrize("key", VARIANTS)
def test_each_variant_is_the_training_that_its_name_says(bert: str, key: str) -> None:
    import bitsandbytes as bnb

    variants, built = planned(bert)
    config, work = built[key]
    assert (variants[key].name, variants[key].max_length) == (NAMES[key], MAX_LENGTH)
    # Nothing else of the configuration has changed.
    ways = ("lora", "quantization", "gradient_checkpointing")
    base = config_of(bert)
    assert replace(config, **{way: getattr(base, way) for way in ways}) == base
    assert config.lora == replace(base.lora, rank=0 if key.startswith("full") else RANK)
    parameters = dict(work.model.named_parameters())
    assert all(p.device.type == "meta" for p in parameters.values())
    adapters = {name: p for name, p in parameters.items() if ".lora_" in name}
    four_bit = [m for m in work.model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    checkpointed = [m for m in work.model.modules() if getattr(m, "gradient_checkpointing", False)]
    assert len(adapters) == (0 if key.startswith("full") else 2 * len(linear_sizes()))
    assert {RANK in p.shape for p in adapters.values()} <= {True}
    assert len(four_bit) == (len(linear_sizes()) if key.startswith("qlora") else 0)
    assert bool(checkpointed) is key.endswith("_checkpointing")
    trained = {name for name, p in parameters.items() if p.requires_grad}
    heads = {name for name in parameters if ".modules_to_save." in name}
    assert trained == (set(parameters) if key.startswith("full") else {*adapters, *heads})
    assert len(heads) == (0 if key.startswith("full") else 2)


def test_checkpointing_and_four_bits_save_what_they_should(bert: str) -> None:
    parts = {key: variant.parts(8, MAX_LENGTH) for key, variant in planned(bert)[0].items()}
    for lora in ("lora", "qlora"):
        # Of each layer only its input is kept, and of the whole a little more.
        inputs = 8 * MAX_LENGTH * HIDDEN * 4
        kept = parts[f"{lora}_checkpointing"]["activations"]
        assert LAYERS * inputs < kept < (LAYERS + 4) * inputs
        assert parts[lora]["activations"] > LAYERS * 10 * inputs
    assert parts["qlora"]["weights"] < parts["lora"]["weights"] < parts["full"]["weights"] + 4 * 10**5
    assert parts["lora"]["gradients"] < parts["full"]["gradients"] / 5


@pytest.mark.parametrize("rank", [0, 5])
def test_the_rank_is_the_configuration_s_or_16(bert: str, rank: int) -> None:
    configs: list[ClinicalClassificationConfig] = []

    def build(config: ClinicalClassificationConfig) -> Workload:
        configs.append(config)
        raise ValueError("not now")

    with pytest.raises(ValueError, match=r"^not now$"):  # once
        plan(build, config_of(bert, lora=LoraConfig(rank=rank, alpha=3)), VARIANTS)
    assert [config.lora.rank for config in configs] == [0, 0, *[rank or 16] * 4]
    assert {config.lora.alpha for config in configs} == {3}
    assert [config.quantization for config in configs] == ["none"] * 4 + ["nf4"] * 2
    assert [config.gradient_checkpointing for config in configs] == [False, True] * 3


def test_only_the_variants_asked_for_in_one_order(bert: str) -> None:
    found, impossible = plan(workload, config_of(bert), ["lora", "full"])
    assert ([variant.name for variant in found], impossible) == (["full", "LoRA"], [])
    for variant, key in zip(found, ("full", "lora"), strict=True):
        assert variant == planned(bert)[0][key]


def test_a_variant_that_cannot_be_is_said_and_left_out(albert: str) -> None:
    found, impossible = plan(workload, config_of(albert), ["lora", "lora_checkpointing"])
    assert [variant.name for variant in found] == ["LoRA"]
    why = "`gradient_checkpointing` true: AlbertForSequenceClassification has no support for it"
    assert impossible == [f"LoRA + checkpointing: {why}"]
    with pytest.raises(ValueError, match=f"^{why}$"):
        plan(workload, config_of(albert), ["qlora_checkpointing", "lora_checkpointing"])


def test_a_variant_that_cannot_be_traced_is_said_and_left_out(bert: str) -> None:
    def build(config: ClinicalClassificationConfig) -> Workload:
        if config.lora.rank > 0:
            return workload(config)

        def by_value(model: nn.Module, *_: Any) -> torch.Tensor:
            total = next(model.parameters()).sum()
            return total if total > 0 else -total

        return replace(workload(config), summed_loss=by_value)

    found, impossible = plan(build, config_of(bert), ["full", "lora"])
    assert [variant.name for variant in found] == ["LoRA"]
    assert len(impossible) == 1
    assert re.match(r"full: BertForSequenceClassification cannot be traced without a device \(", impossible[0])


def test_more_tokens_than_positions_are_refused_by_their_flag(bert: str) -> None:
    """As `load_model` refuses them, for the same reason."""
    said = f"`max_length` {MAX_LENGTH + 1}: has to be at most {MAX_LENGTH}, the positions that "
    with pytest.raises(ValueError, match=re.escape(said)):
        plan(workload, config_of(bert, max_length=MAX_LENGTH + 1), ["lora"])


# What would fit


FIT = re.compile(r"(`.+`): (\d+) examples? at once \((.+) for one\)")
LACK = re.compile(r"(`.+`): not enough by itself, (.+) too much")


def changed_by(config: ClinicalClassificationConfig, flags: str) -> ClinicalClassificationConfig:
    """The configuration with flags on top, as a user would give them who was told of these."""
    given_flags = ["--model", str(config.model), "--max_length", str(config.max_length)]
    given_flags += ["--lora.rank", str(config.lora.rank), "--gradient_checkpointing"]
    given_flags += [str(config.gradient_checkpointing).lower(), "--quantization", config.quantization]
    assert parse(ClinicalClassificationConfig, "", given_flags) == config
    return parse(ClinicalClassificationConfig, "", [*given_flags, *as_flags(flags, flag_names()).split()])


def of_one_layer(max_length: int, *more: Any) -> Workload:
    """The least that can be traced: of images, where the patches are `more`."""

    def outputs(model: nn.Module, number: int, length: int, device: torch.device) -> torch.Tensor:
        return model(
            made_up_images(number, length, device) if more else torch.zeros(number, length, 3, device=device)
        )

    return of_sizes(
        nn.Conv2d(3, 4, 3) if more else nn.Linear(3, 4),
        lambda model: torch.optim.SGD(model.parameters(), 0.1),
        lambda model, number, length, device: outputs(model, number, length, device).sum(),
        outputs,
        max_length,
        *more,
    )


def traced_peak(config: ClinicalClassificationConfig, num_examples: int) -> int:
    tracer = Tracer(workload(config))
    (trace,) = traces_of(tracer, [(num_examples, config.max_length)])
    return max(*trace.training, tracer.fixed.optimizer_peak)


@pytest.mark.parametrize(
    ("rank", "checkpointing", "budget_mib", "fitting"),
    [
        pytest.param(16, False, 5.6, ["`quantization nf4`", "`gradient_checkpointing true`"], marks=pytest.mark.slow),
        pytest.param(0, "auto", 12.0, ["`lora.rank 16`"], marks=pytest.mark.by_hand),
    ],
)
def test_what_would_fit_is_what_a_trace_of_that_configuration_says(
    bert: str, rank: int, checkpointing: Any, budget_mib: float, fitting: list[str]
) -> None:
    config = config_of(bert, lora=LoraConfig(rank=rank), gradient_checkpointing=checkpointing)
    budget = budget_mib * 2**20
    ways = what_would_fit(workload, config, budget)
    assert len(ways) >= 3
    fits = [FIT.fullmatch(way) for way in ways]
    assert [bool(fit) for fit in fits] == sorted((bool(fit) for fit in fits), reverse=True)  # they come first
    assert {fit[1] for fit in fits if fit} >= set(fitting)
    assert not all(fits)
    for way, fit in zip(ways, fits, strict=True):
        lack = LACK.fullmatch(way)
        match = fit or lack
        assert match is not None, way
        start = config if checkpointing != "auto" else replace(config, gradient_checkpointing=True)
        changed = changed_by(start, match[1])
        for_one = traced_peak(changed, 1)
        if fit:
            number = int(fit[2])
            assert (f"{number} example at" in way) is (number == 1)
            assert fit[3] == format_bytes(for_one)
            assert traced_peak(changed, number) <= budget
            assert number == config.effective_batch_size or traced_peak(changed, number + 1) > budget
        else:
            assert match[2] == format_bytes(for_one - budget)
            assert for_one > budget


@pytest.mark.parametrize(
    "checkpointing", ["auto", *(pytest.param(value, marks=pytest.mark.by_hand) for value in (True, False))]
)
@pytest.mark.parametrize(
    ("rank", "more"),
    [
        *((rank, {}) for rank in (0, 16)),
        *(pytest.param(rank, {}, marks=pytest.mark.slow) for rank in (1, 4, 8)),
        pytest.param(0, {"dropout": 0.0}, marks=pytest.mark.slow),
        pytest.param(8, {"dropout": 0.1, "max_length": 32}, marks=pytest.mark.slow),
        pytest.param(16, {"max_length": 512}, marks=pytest.mark.slow),
        (8, {"quantization": "nf4", "max_length": 40}),
        pytest.param(4, {"quantization": "nf4", "max_length": 40}, marks=pytest.mark.slow),
    ],
)
def test_nothing_that_equals_the_configuration_is_advised(
    checkpointing: Any, rank: int, more: dict[str, Any]
) -> None:
    config = config_of("any", lora=LoraConfig(rank=rank), gradient_checkpointing=checkpointing, **more)
    tried: list[ClinicalClassificationConfig] = []

    was_tried = replace(config, gradient_checkpointing=True) if checkpointing == "auto" else config

    def build(changed: ClinicalClassificationConfig) -> Workload:
        if changed == was_tried:  # what the others have to be less than
            return of_one_layer(changed.max_length)
        tried.append(changed)
        raise CannotTrace("not now")

    assert what_would_fit(build, config, 10**6) == []
    assert len({repr(changed) for changed in tried}) == len(tried)
    flags = ("gradient_checkpointing", "lora", "quantization", "optimizer", "dropout", "max_length")
    for changed in tried:
        assert changed not in (config, was_tried)
        assert [getattr(changed, flag) != getattr(was_tried, flag) for flag in flags].count(True) == 1
        assert replace(changed, **{flag: getattr(was_tried, flag) for flag in flags}) == was_tried
        assert changed.lora.rank <= (16 if rank == 0 else rank)
        assert changed.max_length in (config.max_length, config.max_length // 2, config.max_length // 4)
        assert changed.max_length == config.max_length or changed.max_length >= 32
    assert any(changed.lora.rank != rank for changed in tried) is (rank == 0 or rank > 4)
    offered = any(changed.gradient_checkpointing != was_tried.gradient_checkpointing for changed in tried)
    assert offered is (checkpointing is False)


@pytest.mark.parametrize(
    "checkpointing",
    [pytest.param("auto", marks=pytest.mark.slow), pytest.param(False, marks=pytest.mark.by_hand)],
)
def test_a_model_that_cannot_checkpoint_is_advised_of_all_else(albert: str, checkpointing: Any) -> None:
    """Under `auto` it was not tried with checkpointing: it cannot be."""
    ways = what_would_fit(workload, config_of(albert, gradient_checkpointing=checkpointing), 2**30)
    assert [way.partition(":")[0] for way in ways] == [
        "`lora.rank 4`",
        "`quantization nf4`",
        "`optimizer adamw_8bit`",
        f"`max_length {MAX_LENGTH // 2}`",
    ]
    assert all(" 32 examples at once (" in way for way in ways)


@pytest.mark.parametrize(
    ("values", "advised"),
    [
        (
            {"resolution": 224},
            ["`lora.rank 4`", "`quantization nf4`", "`dropout 0`", "`resolution 96`", "`resolution 32`"],
        ),
        (
            {"resolution": 256, "lora": LoraConfig(rank=0), "batch_norm": "micro_batch"},
            ["`dropout 0`", "`resolution 128`", "`resolution 64`"],  # no adapter: it would hold no statistics
        ),
        ({"resolution": 32, "lora": LoraConfig(rank=4), "dropout": 0.0}, ["`quantization nf4`"]),
    ],
)
def test_nothing_that_the_recipe_refuses_is_advised(values: dict[str, Any], advised: list[str]) -> None:
    """A length that the flag cannot have is made a smaller one that it can."""
    config = DrivingImagesConfig(gradient_checkpointing=True, **values)
    tried: list[DrivingImagesConfig] = []

    def build(changed: DrivingImagesConfig) -> Workload:
        tried.append(changed)
        assert changed.resolution % 32 == 0
        if changed != config:
            raise CannotTrace("not now")
        return of_one_layer(num_patches(changed.resolution), PATCHES)

    assert what_would_fit(build, config, 10.0) == []
    found = [
        f"`{flag} {getattr(of, 'rank', of)}`"
        for changed in tried[1:]
        for flag, of in {
            "lora.rank": changed.lora,
            "quantization": changed.quantization,
            "dropout": 0 if changed.dropout == 0 else changed.dropout,
            "resolution": changed.resolution,
        }.items()
        if getattr(changed, flag.partition(".")[0]) != getattr(config, flag.partition(".")[0])
    ]
    assert found == advised


# Lengths


@pytest.mark.parametrize(
    ("max_length", "lengths"),
    [
        (2, [2]),
        (31, [31]),
        (32, [32]),
        (63, [63]),
        (64, [64, 32]),
        (100, [100, 50]),
        (127, [127, 63]),
        (128, [128, 64, 32]),
        (512, [512, 256, 128, 64, 32]),
        (8192, [8192, 4096, 2048, 1024, 512, 256, 128, 64, 32]),
    ],
)
def test_lengths_are_halved_down_to_32(max_length: int, lengths: list[int]) -> None:
    assert lengths_of(max_length) == lengths


# A large model


@pytest.mark.by_hand
def test_a_plan_of_a_billion_parameters_needs_no_memory_for_them(tmp_path: Path) -> None:
    """In float32 its weights alone would take 4 GiB, in 4 bits (most of them) 0.8."""
    LlamaConfig(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        max_position_embeddings=2048,
    ).save_pretrained(tmp_path)
    code = """
import sys, time
from hf_accum.cli.main import main
started = time.perf_counter()
main(sys.argv[1:])
with open("/proc/self/status") as status:  # of this program alone, unlike getrusage, which the parent's is part of
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
print(f"\\nseconds {time.perf_counter() - started:.1f} KiB {peak}")
"""
    flags = ["--model", str(tmp_path), "--max_length", "512", "--variants", "qlora,qlora_checkpointing"]
    done = run([sys.executable, "-c", code, "plan", "clinical_classification", *flags], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    assert "QLoRA + checkpointing" in done.stdout
    match = re.search(r"seconds (\S+) KiB (\d+)", done.stdout)
    assert match is not None
    assert int(match[2]) < 2 * 2**20
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(LlamaConfig.from_pretrained(tmp_path))
    assert sum(p.numel() for p in model.parameters()) > 10**9


# On a card


@pytest.mark.by_hand
def test_on_a_card_what_is_largest_is_what_its_allocator_can_hold(bert: str) -> None:
    """Of lengths that are not planned as many as of the next longer one; of other budgets what the tensors need."""
    budgets = [64 * 2**20, 66 * 2**20, 120 * 2**20]
    (variant,), _ = plan(workload, config_of(bert), ["lora"], CARD, budgets)
    tracer = Tracer(workload(config_of(bert)), CARD)
    with tracer.started() as trace:
        reserved = ReservedBytes(tracer, trace)
        assert variant.reserved == reserved.bytes_at(1, MAX_LENGTH)
        for budget in budgets:
            number = variant.largest(MAX_LENGTH, budget, 1000)
            assert 0 < number < variant.prediction.largest(MAX_LENGTH, budget, 1000)
            assert reserved.bytes_at(number, MAX_LENGTH) <= budget < reserved.bytes_at(number + 1, MAX_LENGTH)
            assert variant.largest(MAX_LENGTH - 1, budget, 1000) == number
            assert variant.largest(MAX_LENGTH // 2 + 1, budget, 1000) == number
            assert variant.largest(MAX_LENGTH, budget, 1) == 1
    other = 77 * 2**20
    assert variant.largest(MAX_LENGTH, other, 1000) == variant.prediction.largest(MAX_LENGTH, other, 1000)
