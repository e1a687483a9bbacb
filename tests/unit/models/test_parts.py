"""The parts of models of each architecture, by the names of their parameters."""

from typing import Any

import pytest
import torch
from tiny import CONFIGS, HEADS
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

from hf_accum.errors import UserError
from hf_accum.models.parts import Parts, freeze_embeddings


def build(auto_class: Any, architecture: str) -> nn.Module:
    torch.manual_seed(0)
    return auto_class.from_config(CONFIGS[architecture])


@pytest.mark.parametrize("architecture", CONFIGS)
def test_layers_are_counted_from_the_top_and_heads_are_told(architecture: str) -> None:
    model = build(AutoModelForSequenceClassification, architecture)
    parts = Parts.of(model)
    assert parts.num_layers == 2
    for name, _ in model.named_parameters():
        assert parts.is_head(name) == (name.split(".")[0] in HEADS[architecture]), name
        if "embed" in name and "rel_" not in name:
            assert parts.layers_above(name) == 2, name
        elif ".0." in name:
            assert parts.layers_above(name) == 1, name
        elif ".1." in name:
            assert parts.layers_above(name) == 0, name


@pytest.mark.parametrize(
    ("auto_class", "architecture"), [(AutoModelForMaskedLM, "bert"), (AutoModelForCausalLM, "llama")]
)
def test_frozen_embeddings_have_no_gradient_and_all_else_has(auto_class: Any, architecture: str) -> None:
    model = build(auto_class, architecture)
    freeze_embeddings(model)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen
    assert all("embed" in name for name in frozen)
    ids = torch.tensor([[5, 6, 7]])
    model(input_ids=ids).logits.sum().backward()  # type: ignore[operator]
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (name in frozen or "pooler" in name), name


def test_a_model_without_layers_has_no_embeddings_to_freeze() -> None:
    with pytest.raises(UserError, match="`freeze_embeddings` true: has to be false"):
        freeze_embeddings(nn.Linear(2, 2))
