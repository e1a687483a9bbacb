"""A classifier on pooled states: right whatever the padding, on any encoder, and with its trained weights again."""

from pathlib import Path

import pytest
import torch
from pooled import LABELS, load_pooled
from tiny import ARCHITECTURES, make_inputs, make_tokenizer, save_base
from torch import Tensor
from trained import adapt, logits_of, train
from transformers import AutoModelForSequenceClassification, T5Config

from hf_accum.config.lora import LoraConfig
from hf_accum.errors import UserError
from hf_accum.models.loading import build_without_weights, load_model
from hf_accum.models.pooled_classifier import AutoPooledClassifier, StatePooling, classifier_of, pool_states
from hf_accum.models.saving import save_model

POOLINGS: tuple[StatePooling, ...] = ("mean", "max")


def pooled_one_by_one(states: Tensor, lengths: list[int], pooling: str) -> Tensor:
    texts = [states[row, :length].double() for row, length in enumerate(lengths)]
    return torch.stack([text.sum(0) / len(text) if pooling == "mean" else text.max(0).values for text in texts])


@pytest.mark.parametrize("pooling", POOLINGS)
def test_states_are_pooled_over_the_tokens_alone(pooling: str) -> None:
    lengths = [1, 3, 5]
    states = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(5)[None] < torch.tensor(lengths)[:, None]
    expected = pooled_one_by_one(states, lengths, pooling)
    torch.testing.assert_close(pool_states(states, mask.long(), pooling).double(), expected, rtol=1e-6, atol=1e-6)
    whole = pooled_one_by_one(states, [5, 5, 5], pooling)
    torch.testing.assert_close(pool_states(states, None, pooling).double(), whole, rtol=1e-6, atol=1e-6)
    assert pool_states(states.bfloat16(), mask, pooling).dtype == torch.float32


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_on_any_encoder_a_text_has_the_same_logits_alone_and_among_longer_ones(
    tmp_path: Path, architecture: str, pooling: StatePooling
) -> None:
    pretrained = load_pooled(save_base(tmp_path, architecture), pooling)
    assert pretrained.new_modules == ("classifier",)
    model = pretrained.model.eval()
    inputs = make_inputs()
    together = model(**inputs).logits
    assert together.shape == (len(inputs["input_ids"]), 3)
    for row, mask in enumerate(inputs["attention_mask"]):
        alone = model(input_ids=inputs["input_ids"][row : row + 1, : int(mask.sum())]).logits
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)


def test_the_model_of_a_plan_has_the_same_weights(tmp_path: Path) -> None:
    folder = save_base(tmp_path, "distilbert")
    planned = build_without_weights(AutoPooledClassifier("mean"), str(folder), max_length=8, **LABELS)
    shapes = {name: parameter.shape for name, parameter in load_pooled(folder).model.named_parameters()}
    assert {name: parameter.shape for name, parameter in planned.named_parameters()} == shapes


def test_labels_bring_the_loss_that_transformers_gives(tmp_path: Path) -> None:
    model = load_pooled(save_base(tmp_path, "bert")).model
    labels = torch.tensor([0, 2, 1])
    output = model(**make_inputs(), labels=labels)
    expected = torch.nn.functional.cross_entropy(output.logits, labels)
    torch.testing.assert_close(output.loss, expected)


def test_a_trained_model_is_trained_further_with_its_classifier(tmp_path: Path) -> None:
    model = adapt(load_pooled(save_base(tmp_path / "base", "bert")), LoraConfig(rank=0))
    train(model)
    save_model(model, make_tokenizer(), tmp_path / "model")
    again = load_pooled(tmp_path / "model")
    assert again.new_modules == ()
    assert torch.equal(logits_of(again.model), logits_of(model))
    assert load_pooled(tmp_path / "model", "max").new_modules == ("classifier",)
    with pytest.raises(UserError, match="do not fit: classifier"):
        load_model(
            AutoPooledClassifier("mean"), str(tmp_path / "model"), make_tokenizer(), max_length=8, num_labels=5
        )


def test_a_model_of_encoder_and_decoder_is_refused() -> None:
    config = T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=16)
    with pytest.raises(UserError, match="`pooling` mean: T5Config is of an encoder and a decoder: has to be cls"):
        AutoPooledClassifier("mean").from_config(config)


def test_cls_is_the_head_of_the_models_own_kind() -> None:
    assert classifier_of("cls") is AutoModelForSequenceClassification
    assert classifier_of("max") == AutoPooledClassifier("max")
