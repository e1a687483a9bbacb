"""Made-up rows for transformers' heads, and their own losses."""

import copy
from typing import Any

import pytest
import torch
import transformers
from tiny import CONFIGS
from torch import nn
from transformers import AutoConfig
from transformers.utils import ModelOutput

from hf_accum import check
from hf_accum.errors import UserError
from hf_accum.gradient_check.heads import HEADS, made_up_rows, own_loss

SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def model_with(head: str) -> Any:
    torch.manual_seed(0)
    match head:
        case "seq2seq_lm":
            config = AutoConfig.for_model(
                "t5",
                vocab_size=44,
                d_model=16,
                d_kv=8,
                d_ff=16,
                num_layers=1,
                num_heads=2,
                dropout_rate=0.0,
                decoder_start_token_id=0,
            )
        case "image_classification":
            config = AutoConfig.for_model("vit", image_size=16, patch_size=8, **SMALL)
        case "semantic_segmentation":
            four: dict[str, Any] = {"hidden_sizes": [8] * 4, "num_attention_heads": [1] * 4, "depths": [1] * 4}
            config = AutoConfig.for_model("segformer", image_size=32, decoder_hidden_size=8, **four)
        case "audio_classification":
            config = AutoConfig.for_model("wav2vec2", conv_dim=[8] * 7, num_conv_pos_embeddings=4, **SMALL)
        case _:
            config = copy.deepcopy(
                CONFIGS["llama" if head == "causal_lm" else "bert"]
            )  # a forward with labels changes it
    config.num_labels = 2 if head == "question_answering" else 3
    return getattr(transformers, HEADS[head]).from_config(config)


@pytest.mark.parametrize("head", HEADS)
def test_each_head_gives_its_own_loss_of_made_up_rows(head: str) -> None:
    model = model_with(head)
    rows = made_up_rows(model, head)
    assert {len(of) for of in rows.values()} == {8}
    assert own_loss(model, rows).isfinite()
    assert own_loss(model, {name: of[:1] for name, of in rows.items()}).isfinite()
    again = made_up_rows(model, head)
    assert all(torch.equal(of, again[name]) for name, of in rows.items())


@pytest.mark.parametrize(
    ("head", "kinds"), [("sequence_classification", {"count_ignored"}), ("causal_lm", set())], ids=str
)
def test_what_a_head_does_with_the_count_is_found(head: str, kinds: set[str]) -> None:
    model = model_with(head)
    report = check(model, own_loss, [made_up_rows(model, head)], stock=False)
    assert {finding.kind for finding in report.findings if finding.severity == "fault"} == kinds


def test_a_model_without_a_loss_of_its_own_is_refused() -> None:
    class NoLoss(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return ModelOutput(loss=None, logits=x)

    with pytest.raises(UserError, match="gives no loss of its own"):
        own_loss(NoLoss(), {"x": torch.ones(1)})
