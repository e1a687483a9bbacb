"""The mask that all layers share: who has it, and that it changes nothing but bytes."""

import copy
from typing import Any

import pytest
import torch
from tiny import CONFIGS, make_decoder_config
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, BertConfig, EsmConfig

from hf_accum.device.live_bytes import LiveBytes
from hf_accum.models.attention import share_mask

SHARED = {"bert": True, "roberta": True, "distilbert": True, "electra": True}
"""Others have a mask of their own in some layers, a causal one, or none of torch's attention."""


def build(config: Any, auto_class: Any = AutoModelForSequenceClassification) -> Any:
    torch.manual_seed(0)
    return auto_class.from_config(config).double().eval()  # without dropout


def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 44, (3, 7), generator=generator)
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 2 + [0] * 5])
    return {"input_ids": ids * mask, "attention_mask": mask}


def loss_and_gradients(model: nn.Module) -> list[Tensor]:
    logits = model(**inputs()).logits
    logits.square().sum().backward()
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return [logits.detach(), *found]


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_shared_mask_gives_the_same_to_rounding(architecture: str) -> None:
    model = build(CONFIGS[architecture])
    before = loss_and_gradients(model)
    assert share_mask(model) == SHARED.get(architecture, False)
    for one, other in zip(before, loss_and_gradients(model), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_model_whose_embeddings_read_the_mask_keeps_its_own() -> None:
    sizes: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    model = build(EsmConfig(vocab_size=44, intermediate_size=16, pad_token_id=0, mask_token_id=4, **sizes))
    before = loss_and_gradients(model)
    assert not share_mask(model)
    assert all(torch.equal(one, other) for one, other in zip(before, loss_and_gradients(model), strict=True))


@pytest.mark.parametrize(
    "config",
    [
        BertConfig(vocab_size=44, hidden_size=16, num_attention_heads=2, num_hidden_layers=1, is_decoder=True),
        make_decoder_config("mistral"),
        AutoConfig.for_model("bart", vocab_size=44, d_model=16, encoder_layers=1, decoder_layers=1),
    ],
    ids=lambda config: config.model_type,
)
def test_models_that_see_a_part_alone_keep_their_own(config: Any) -> None:
    assert not share_mask(build(config, AutoModel))


def test_without_torch_s_attention_there_is_nothing_to_share() -> None:
    torch.manual_seed(0)
    assert not share_mask(AutoModel.from_config(copy.deepcopy(CONFIGS["bert"]), attn_implementation="eager"))


def test_the_mask_has_the_type_that_the_layers_compute_in() -> None:
    model = build(CONFIGS["bert"]).float()
    share_mask(model)
    seen: list[Tensor] = []
    layer = model.base_model.encoder.layer[0]
    layer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(args[1] if len(args) > 1 else kwargs["attention_mask"]), with_kwargs=True
    )
    model(**inputs())
    with torch.autocast("cpu", torch.bfloat16):
        model(**inputs())
    assert [mask.dtype for mask in seen] == [torch.float32, torch.bfloat16]
    assert {tuple(mask.shape) for mask in seen} == {(3, 1, 1, 7)}


def test_it_takes_less_than_one_in_each_layer() -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 1,
        "num_hidden_layers": 8,
    }
    config = BertConfig(vocab_size=44, max_position_embeddings=256, attention_probs_dropout_prob=0.0, **sizes)
    ids = torch.full((4, 256), 5)
    mask = torch.ones_like(ids)
    mask[-1, -1] = 0
    peak = {}
    for shared in (False, True):
        model = build(config).float()
        if shared:
            share_mask(model)
        with LiveBytes() as live:
            model(input_ids=ids, attention_mask=mask).logits.sum().backward()
        peak[shared] = live.peak_bytes
    assert peak[True] < 0.8 * peak[False]
