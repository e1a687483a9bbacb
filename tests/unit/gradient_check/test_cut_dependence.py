"""Models whose gradient depends on the cut are told from those whose does not, and why is said."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from checked_models import (
    WITH_FAULT,
    WITHOUT_FAULT,
    classifier_of,
    computed_of,
    computed_of_images,
    experts_of,
    images,
    text_config,
    texts,
)
from tiny import VOCAB_SIZE, make_decoder_config
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_accum.gradient_check.cut_dependence import Fault, find_cut_dependence
from hf_accum.gradient_check.forwards import CannotCheck
from hf_accum.models.batch_norm import freeze_statistics
from hf_accum.models.dropout import set_dropout

PRECISIONS = ("float32", "bfloat16")
RANDOM = {"without_dropout": False}


def find(model: nn.Module, **how: Any) -> Fault | None:
    """Of texts, without dropout unless it is said otherwise."""
    asked = {name: how.pop(name) for name in ("without_dropout", "sees_batches") if name in how}
    return find_cut_dependence(computed_of(model, **how), texts(), **{"without_dropout": True} | asked)


# Architectures


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", WITHOUT_FAULT)
def test_what_does_not_depend_on_the_cut_is_not_refused(name: str, precision: str) -> None:
    assert find(classifier_of(WITHOUT_FAULT[name]), precision=precision) is None


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ["vit", "efficientnet"])
def test_images_do_neither(kind: str, precision: str) -> None:
    from tiny_vision import TINY

    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    more = TINY if kind == "efficientnet" else sizes | {"intermediate_size": 32, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    model = AutoModelForImageClassification.from_config(AutoConfig.for_model(kind, num_labels=3, **more)).train()
    set_dropout(model, 0.0)
    freeze_statistics(model)
    computed = computed_of_images(model, precision=precision)
    assert find_cut_dependence(computed, images(), without_dropout=kind == "vit") is None


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("name", "cause", "way_out"), WITH_FAULT.values(), ids=WITH_FAULT)
def test_what_does_is_refused_with_its_reason(name: Any, cause: str, way_out: str, precision: str) -> None:
    fault = find(classifier_of(name), max_length=32, precision=precision)
    assert fault is not None
    assert fault.cause.startswith(cause)
    assert fault.way_out == way_out


@pytest.mark.parametrize("name", ["dynamic", "longrope"])
def test_texts_below_the_threshold_are_not_refused(name: str) -> None:
    config, *_ = WITH_FAULT[name]
    assert find(classifier_of(config), max_length=20) is None


@pytest.mark.parametrize("name", ["FNet", "ConvBERT", "longrope"])
def test_texts_that_are_always_computed_by_themselves_are_not_refused(name: str) -> None:
    config, *_ = WITH_FAULT[name]
    assert find(classifier_of(config), max_length=32, num_examples=1) is None


def test_frequencies_that_depend_on_earlier_texts_are_refused_for_single_texts_too() -> None:
    config, *_ = WITH_FAULT["dynamic"]
    fault = find(classifier_of(config), max_length=32, num_examples=1)
    assert fault is not None
    assert "once others were run" in fault.seen
    assert "rotary_emb (LlamaRotaryEmbedding), by `rope_parameters` of its config (rope_type dynamic)" in fault.cause


def test_a_short_text_that_turns_long_ones_to_full_attention_is_refused() -> None:
    """BigBird puts other modules in its layers: what comes after computes in another way, unless it is resumed."""
    model = classifier_of(text_config("big_bird", block_size=2, num_random_blocks=1))
    kinds = [type(module) for module in model.modules()]
    fault = find(model, max_length=32)
    assert fault is not None
    assert "once others were run" in fault.seen
    assert fault.way_out == "`max_length 14` keeps all texts below"
    assert [type(module) for module in model.modules()] == kinds
    assert find(model, max_length=14) is None


class Stretched(nn.Module):
    """The first tokens differ a little where a text is beyond a length, as the frequencies of long RoPE do."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1.0))

    def forward(self, states: Tensor) -> Tensor:
        return states * (self.factor * (1 + 5e-3 * (states.shape[1] > 200)))


def test_a_small_difference_of_a_short_text_is_seen_beside_long_ones() -> None:
    model = Tiny(Stretched())
    model.config = AutoConfig.for_model("llama", max_position_embeddings=200)  # type: ignore[assignment]
    computed = computed_of(model, max_length=400)

    def of_tokens(model: nn.Module, batch: Any) -> Tensor:
        inputs, labels = batch
        losses = torch.nn.functional.cross_entropy(model(**inputs).logits, labels, reduction="none")
        return (losses * (inputs["input_ids"] != 0).sum(1)).sum()  # as in a language model: long texts weigh more

    fault = find_cut_dependence(replace(computed, summed_loss=of_tokens), texts(), without_dropout=True)
    assert fault is not None
    assert "where it is padded to" in fault.seen


def test_longer_texts_are_run_one_by_one_where_no_more_fit() -> None:
    ran: list[tuple[int, int]] = []
    computed = computed_of(
        classifier_of(text_config("modernbert", cls_token_id=2, sep_token_id=3, local_attention=24)),
        max_length=40,
        num_examples=lambda length: 1 if length > 20 else 2,
    )
    make_batch = computed.make_batch

    def counting(examples: Any, length: int) -> Any:
        ran.append((len(examples), length))
        return make_batch(examples, length)

    object.__setattr__(computed, "make_batch", counting)
    assert find_cut_dependence(computed, texts(), without_dropout=True) is None
    assert max(length for _, length in ran) > 24
    assert all(number <= computed.num_examples(length) for number, length in ran)


# Random numbers


def router_with_jitter() -> nn.Module:
    return classifier_of(make_decoder_config("mixtral", num_local_experts=4), router_jitter_noise=0.3)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_noise_that_is_left_on_is_refused_by_its_field_and_layer(precision: str) -> None:
    fault = find(router_with_jitter(), precision=precision)
    assert fault is not None
    assert "with other random numbers" in fault.seen
    assert fault.cause == (
        "the model is random without dropout, first in layer model.layers.0.mlp.gate (MixtralTopKRouter), by "
        "`router_jitter_noise=0.3` of its config"
    )


def test_noise_is_no_fault_where_dropout_was_not_turned_off() -> None:
    assert find(router_with_jitter(), without_dropout=False) is None


class Tiny(nn.Module):
    """A classifier of texts, whose parts can be replaced by faulty ones."""

    def __init__(self, middle: nn.Module | None = None, pool: str = "mean") -> None:
        super().__init__()
        self.embed, self.middle = nn.Embedding(VOCAB_SIZE, 8), middle or nn.Identity()
        self.head, self.pool = nn.Linear(8, 3), pool

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> SequenceClassifierOutput:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        logits = self.head(self.middle(self.embed(input_ids)))
        if self.pool == "last":
            return SequenceClassifierOutput(logits=logits[:, -1])
        weights = mask[:, :, None].to(logits)
        return SequenceClassifierOutput(logits=(logits * weights).sum(1) / weights.sum(1))


class Layer(nn.Module):
    """Of a function."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function
        self.count = 0
        self.seen = nn.Buffer(torch.zeros(()))

    def forward(self, states: Tensor) -> Tensor:
        return self.function(self, states)


def counts(layer: Any, states: Tensor) -> Tensor:
    layer.count += 1
    return states * layer.count


def averages(layer: Any, states: Tensor) -> Tensor:
    layer.seen += states.detach().mean()
    return states


def test_randomness_of_evaluation_is_a_fault_with_dropout_too() -> None:
    noise = Layer(lambda _, states: states + torch.randn_like(states))
    fault = find(Tiny(noise), without_dropout=False)
    assert fault is not None
    assert fault.cause == "the model is random in eval mode, first in layer middle (Layer)"


@pytest.mark.parametrize("draw", [random.random, np.random.random])
def test_random_numbers_of_python_and_numpy_are_seen(draw: Any) -> None:
    fault = find(Tiny(Layer(lambda _, states: states * draw())))
    assert fault is not None
    assert "is random without dropout, first in layer middle (Layer)" in fault.cause


def test_random_numbers_that_change_nothing_are_no_fault() -> None:
    assert find(Tiny(Layer(lambda _, states: states + 0 * torch.randn_like(states)))) is None


def test_what_is_seldom_random_is_found_by_some_seed() -> None:
    layer = Layer(lambda _, states: states * (2 if float(torch.rand(())) > 0.6 else 1))
    assert find(Tiny(layer)) is not None


# State, heads, and examples that see each other


def test_state_that_changes_results_is_refused_with_its_layer() -> None:
    model = Tiny(Layer(counts))
    fault = find(model)
    assert fault is not None
    assert "once others were run" in fault.seen
    assert fault.cause == "forwards change the state of the model, first in layer middle (Layer)"
    assert model.middle.count == 0  # as before


def test_a_saved_buffer_that_forwards_change_is_refused() -> None:
    layer = Layer(averages)
    assert find(Tiny(layer)) == Fault(
        "forwards changed the buffer middle.seen", "what is saved depends on the micro-batches"
    )
    assert float(layer.seen) == 0.0


def test_a_weight_that_forwards_move_unseen_by_torch_is_refused() -> None:
    class Moving(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            self.weight.data.add_(1e-4)
            return super().forward(input)

    fault = find(Tiny(Moving(8, 8)))
    assert fault == Fault(
        "forwards changed the parameter middle.weight", "micro-batches of a window have other weights"
    )


@pytest.mark.parametrize("normed", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
def test_power_iterations_of_a_spectral_norm_are_refused(normed: Any) -> None:
    model = Tiny(normed(nn.Linear(8, 8)))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert find(model) is not None
    assert before
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_a_buffer_that_is_not_saved_and_counts_is_refused_where_it_matters() -> None:
    class Counting(nn.Module):
        def __init__(self, matters: float) -> None:
            super().__init__()
            self.matters, self.count = matters, nn.Buffer(torch.zeros(()), persistent=False)

        def forward(self, states: Tensor) -> Tensor:
            self.count += 1
            return states * (1 + self.matters * self.count)

    fault = find(Tiny(Counting(0.1)))
    assert fault is not None
    assert "once others were run" in fault.seen
    assert find(Tiny(Counting(0.0))) is None


def test_a_head_that_reads_a_position_which_is_padding_is_refused() -> None:
    fault = find(Tiny(pool="last"))
    assert fault is not None
    assert fault.cause == "what reads the outputs of the last layer reads padding"
    assert fault.way_out == "`micro_batch_size 1` computes each by itself"


def test_examples_that_see_each_other_are_refused_with_their_layer() -> None:
    fault = find(Tiny(Layer(lambda _, states: states - states[:, :2].mean((0, 1)))))
    assert fault is not None
    assert fault.cause == "examples of a micro-batch see each other, first in layer middle (Layer)"


def with_experts(model_type: str, capacity: int) -> nn.Module:
    layer = experts_of(model_type, capacity)
    model = Tiny(layer)
    model.config = layer.config
    return model


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("capacity", [3, 64])
def test_experts_that_leave_out_tokens_of_the_micro_batch_are_refused_by_the_field(
    capacity: int, precision: str
) -> None:
    """Also where the few short texts of the question stay below the capacity."""
    fault = find(with_experts("nllb-moe", capacity), precision=precision)
    assert fault is not None
    assert fault.cause == (
        "experts leave out tokens by how many the whole micro-batch has, by "
        f"`expert_capacity` {capacity} of its config, in layer middle.router (NllbMoeTop2Router)"
    )
    assert fault.way_out == "`micro_batch_size 1` computes each by itself"


@pytest.mark.parametrize(
    ("model_type", "capacity", "num_examples"),
    [
        ("switch_transformers", 3, 8),  # of each text by itself
        ("nllb-moe", 160, 8),  # of texts of 20 tokens at most
        ("nllb-moe", 3, 1),
    ],
)
def test_experts_that_leave_out_none_or_by_the_text_are_not_refused(
    model_type: str, capacity: int, num_examples: int
) -> None:
    assert find(with_experts(model_type, capacity), num_examples=num_examples) is None


def test_examples_that_see_each_other_by_something_else_than_experts_are_told_of_as_such() -> None:
    seeing = Layer(lambda _, states: states - states[:, :2].mean((0, 1)))
    fault = find(Tiny(nn.Sequential(seeing, experts_of("nllb-moe", 64))))
    assert fault is not None
    assert "examples of a micro-batch see each other, first in layer middle.0 (Layer)" in fault.cause


def test_batch_norm_that_sees_the_micro_batch_is_refused_unless_it_was_asked_for() -> None:
    class OfTokens(nn.BatchNorm1d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input.transpose(1, 2)).transpose(1, 2)

    model = Tiny(OfTokens(8)).train()
    expected = Fault("layer middle (OfTokens) is in train mode", "it sees the whole micro-batch")
    assert find(model) == find(model, without_dropout=False) == expected
    assert find(model, sees_batches=True) is None
    assert model.middle.training


class OfPlaces(nn.Module):
    """Tokens of an image that pass through a convolution and a BatchNorm in eval mode: as in CvT."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.mix, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 4), nn.Linear(4, 3)
        self.conv, self.norm = nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4)

    def forward(self, pixel_values: Tensor) -> SequenceClassifierOutput:
        places = self.patches(pixel_values)
        tokens = self.mix(places.flatten(2).transpose(1, 2))
        mixed = self.norm(self.conv(tokens.permute(0, 2, 1).view(places.shape)))
        return SequenceClassifierOutput(logits=self.head(mixed.flatten(2).permute(0, 2, 1).tanh().mean(1)))


def test_single_images_that_go_backward_in_another_way_are_refused() -> None:
    model = OfPlaces()
    model.norm.eval()
    fault = find_cut_dependence(computed_of_images(model), images())
    assert fault is not None
    assert "they are computed together, at the same losses" in fault.seen
    assert fault.cause == "a single one goes backward in another way"
    freeze_statistics(model)
    assert find_cut_dependence(computed_of_images(model), images()) is None


# What is left behind


@pytest.mark.parametrize("name", ["bert", "llama", "FNet", "dynamic"])
def test_all_is_as_before(name: str) -> None:
    config = WITHOUT_FAULT[name] if name in WITHOUT_FAULT else WITH_FAULT[name][0]
    model = classifier_of(config, **({"hidden_dropout_prob": 0.1} if name == "bert" else {}))
    model.get_submodule(
        next(n for n, m in model.named_modules() if isinstance(m, nn.LayerNorm) or "norm" in n)
    ).eval()
    first = next(model.parameters())
    first.grad = torch.ones_like(first)
    gradient = first.grad
    before = {key: tensor.clone() for key, tensor in (*model.named_parameters(), *model.named_buffers())}
    modes = [module.training for module in model.modules()]
    state = random.getstate(), torch.get_rng_state()
    np.random.seed(0)
    rotary = {n: vars(m).copy() for n, m in model.named_modules() if "rotary" in n}
    find(model, max_length=20 if name == "bert" else 32, without_dropout=False, precision="bfloat16")
    now = dict((*model.named_parameters(), *model.named_buffers()))
    assert list(now) == list(before)
    assert all(torch.equal(now[key], before[key]) and now[key].dtype == before[key].dtype for key in before)
    assert [module.training for module in model.modules()] == modes
    assert first.grad is gradient
    assert torch.equal(gradient, torch.ones_like(first))
    assert sum(p.grad is not None for p in model.parameters()) == 1
    assert random.getstate() == state[0]
    assert torch.equal(torch.get_rng_state(), state[1])
    assert np.random.random() == np.random.RandomState(0).random()
    for n, attributes in rotary.items():
        assert set(vars(model.get_submodule(n))) == set(attributes)
        assert vars(model.get_submodule(n))["max_seq_len_cached"] == attributes["max_seq_len_cached"]
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "OutOfMemoryError: CUDA out of memory"),
        (ValueError("the length has to be a multiple of 64"), "the length has to be a multiple of 64"),
    ],
)
def test_a_model_that_takes_no_such_texts_cannot_be_asked(error: Exception, reason: str) -> None:
    def fails(layer: Any, states: Tensor) -> Tensor:
        if len(states) > 1:
            raise error
        return states

    model = Tiny(Layer(fails)).train()
    with pytest.raises(CannotCheck, match=f"could not be found out \\({'.*' + reason}"):
        find(model)
    assert model.training


def test_a_loss_that_is_not_finite_cannot_be_compared() -> None:
    with pytest.raises(CannotCheck, match="a loss is not finite"):
        find(Tiny(Layer(lambda _, states: states / 0)))
