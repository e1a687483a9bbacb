"""The loss of a language model in chunks: that of all logits, its gradients too, and less memory."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import CONFIGS, VOCAB_SIZE, make_decoder_config, make_inputs
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

from hf_accum.config.recipe import RecipeConfig
from hf_accum.device.live_bytes import LiveBytes
from hf_accum.tasks.causal_lm.task import CausalTexts
from hf_accum.tasks.language_modeling.chunked_loss import (
    ChunkedCrossEntropy,
    Targets,
    output_layer,
    stop_before_output_layer,
    with_output_layer,
)
from hf_accum.tuner.prediction import predict
from hf_accum.tuner.workload import workload_of

MODELS: list[tuple[Any, str]] = [
    *((AutoModelForMaskedLM, name) for name in ("bert", "roberta", "distilbert", "electra", "deberta", "modernbert")),
    (AutoModelForCausalLM, "llama"),
    (AutoModelForCausalLM, "biogpt"),
]


def make_model(auto_class: Any, name: str) -> nn.Module:
    torch.manual_seed(0)
    return auto_class.from_config(CONFIGS[name]).double().eval()


@pytest.mark.parametrize(("auto_class", "name"), MODELS, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("chunk_size", [1, 4, 1000])
def test_loss_and_gradients_are_those_of_all_logits(auto_class: Any, name: str, chunk_size: int) -> None:
    """In float64, against the model as it is and torch's cross-entropy over the whole vocabulary."""
    inputs = make_inputs()
    positions = torch.tensor([0, 3, 9, 12, 14])
    tokens = torch.randint(VOCAB_SIZE, (5,), generator=torch.Generator().manual_seed(1))
    model = make_model(auto_class, name)
    logits = model(**inputs).logits
    expected = F.cross_entropy(logits.flatten(0, 1)[positions], tokens, reduction="sum")
    expected.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    layer, objective = stop_before_output_layer(model), ChunkedCrossEntropy(chunk_size)
    loss = objective(layer, model(**inputs).logits, Targets(positions, tokens))
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == gradients.keys()
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-10, atol=1e-12)
    judged, right = objective.judge(layer, model(**inputs).logits, Targets(positions, tokens))
    assert len(judged) == len(right) == 5
    assert float(judged.sum()) == pytest.approx(expected.item(), rel=1e-12)
    assert int(right.sum()) == int((logits.flatten(0, 1)[positions].argmax(-1) == tokens).sum())
    with with_output_layer(model):
        torch.testing.assert_close(model(**inputs).logits, logits)
    assert model(**inputs).logits.shape[-1] == output_layer(model).in_features


def test_a_model_that_does_more_than_multiply_is_refused_and_left_as_it_was() -> None:
    model = make_model(AutoModelForCausalLM, "llama")
    forward = model.forward
    model.forward = lambda **inputs: _capped(forward(**inputs))  # type: ignore[method-assign]
    before = model(**make_inputs()).logits
    with pytest.raises(ValueError, match="does more than multiply by its output layer"):
        stop_before_output_layer(model)
    torch.testing.assert_close(model(**make_inputs()).logits, before)
    with pytest.raises(ValueError, match="has no linear output layer"):
        stop_before_output_layer(AutoModelForSequenceClassification.from_config(CONFIGS["bert"]))


def test_a_cap_shows_at_small_logits_and_whatever_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """At logits of thousandths tanh changes nothing; its padding, which token 0 is, has an embedding of zeros."""
    config = make_decoder_config("gemma2", initializer_range=1e-3)
    model = AutoModelForCausalLM.from_config(config)
    assert model(input_ids=torch.tensor([[7, 8]])).logits.abs().max() < 0.1
    with pytest.raises(ValueError, match=r"caps its logits .* give a `model` that does not"):
        stop_before_output_layer(model)
    monkeypatch.setattr("hf_accum.tasks.language_modeling.chunked_loss._CAPS", ())
    with pytest.raises(ValueError, match="does more than multiply by its output layer"):
        stop_before_output_layer(model)
    config.final_logit_softcapping = None
    stop_before_output_layer(AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize(
    ("model_type", "scale"), [("granite", {"logits_scaling": 7.0}), ("cohere", {"logit_scale": 0.1})]
)
def test_logits_that_are_scaled_are_so_in_the_loss(model_type: str, scale: dict[str, float]) -> None:
    config = make_decoder_config(model_type, **scale)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).double().eval()
    logits = model(**make_inputs()).logits
    targets = Targets(torch.arange(5), torch.arange(5))
    expected = F.cross_entropy(logits.flatten(0, 1)[:5], torch.arange(5), reduction="sum")
    loss = ChunkedCrossEntropy(2)(stop_before_output_layer(model), model(**make_inputs()).logits, targets)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)


def _capped(output: Any) -> Any:
    output.logits = torch.tanh(output.logits)
    return output


def test_logits_never_stand_whole() -> None:
    """A vocabulary of 20,000: the peak of forward and backward, by live tensors."""
    layer = nn.Linear(8, 20_000, bias=False)
    hidden = torch.randn(4, 64, 8, requires_grad=True)
    positions = torch.arange(256)
    targets = Targets(positions, positions)

    def peak(chunk_size: int) -> int:
        with LiveBytes(held=[layer.weight, hidden]) as live:
            ChunkedCrossEntropy(chunk_size)(layer, hidden, targets).backward()
        layer.weight.grad = hidden.grad = None
        return live.peak_bytes

    whole = 256 * 20_000 * 4
    assert peak(256) > whole
    assert peak(16) < whole / 2


def test_no_target_is_no_loss() -> None:
    layer = nn.Linear(8, 20)
    none = torch.zeros(0, dtype=torch.long)
    hidden = torch.randn(2, 3, 8, requires_grad=True)
    loss = ChunkedCrossEntropy(4)(layer, hidden, Targets(none, none))
    loss.backward()
    assert loss.item() == 0
    assert hidden.grad is not None
    assert not hidden.grad.any()


@pytest.mark.slow
@pytest.mark.parametrize(("auto_class", "name"), [MODELS[0], MODELS[6]], ids=["bert", "llama"])
def test_a_smaller_chunk_is_predicted_to_need_less(auto_class: Any, name: str) -> None:
    model = auto_class.from_config(CONFIGS[name])
    stop_before_output_layer(model)

    def needed(chunk_size: int) -> int:
        task = CausalTexts(None, ChunkedCrossEntropy(chunk_size), max_length=16)
        work = workload_of(model, task, RecipeConfig())
        return predict(work).training.bytes_at(16, 16)

    assert needed(8) < needed(256)


@pytest.mark.parametrize("trains_layer", [True, False])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_gradients_of_one_chunk_and_of_many_are_those_of_autograd(precision: str, trains_layer: bool) -> None:
    """Also where the layer multiplies in bf16, and where only the states have a gradient."""
    torch.manual_seed(0)
    layer = nn.Linear(16, 50)
    layer.requires_grad_(trains_layer)
    states = torch.randn(2, 9, 16, requires_grad=True)
    targets = Targets(torch.arange(18), torch.randint(50, (18,)))
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    bias = layer.bias.to(dtype)
    logits = F.linear(states.flatten(0, 1).to(dtype), layer.weight.to(dtype), bias).float()
    expected = F.cross_entropy(logits, targets.tokens, reduction="sum")
    wanted = [states, *layer.parameters()] if trains_layer else [states]
    reference = torch.autograd.grad(expected, wanted)
    for chunk_size in (1, 4, 18):
        loss = ChunkedCrossEntropy(chunk_size, precision)(layer, states, targets)
        found = torch.autograd.grad(2 * loss, wanted)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        for one, other in zip(found, reference, strict=True):
            tolerance = 1e-5 if precision == "no" else 2e-2
            torch.testing.assert_close(one, 2 * other, rtol=tolerance, atol=tolerance * float(other.abs().max()))
