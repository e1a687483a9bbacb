"""What the Trainer and a plain loop compute, truly run."""

import os
from typing import Any

import pytest
import torch
from accelerate.state import GradientState, PartialState
from torch import nn
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification

from hf_accum.gradient_check.stock import compare_stock_loops, labelled


def model(auto_class: Any = BertForSequenceClassification, **how: Any) -> Any:
    torch.manual_seed(0)
    size: dict[str, Any] = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return auto_class(BertConfig(vocab_size=30, hidden_size=8, attention_probs_dropout_prob=0.0, **size, **how))


OFF = nn.Dropout(0.0)
OFF.train = lambda mode=True: OFF  # as of a model whose dropout was turned off
NAMES = ("transformers' Trainer", "accelerate's accumulate")
BATCH = {"input_ids": torch.arange(1, 25).reshape(8, 3), "labels": torch.arange(8) % 2}


def test_a_head_that_ignores_the_count_is_as_many_times_too_large_as_there_are_pieces() -> None:
    environment, states = dict(os.environ), (dict(PartialState._shared_state), dict(GradientState._shared_state))
    loops, failed = compare_stock_loops(model(), BATCH, OFF)
    assert failed == []
    assert [(loop.name, loop.num_examples) for loop in loops] == [(name, 8) for name in NAMES]
    assert loops[0].norm_ratio == pytest.approx(8.0)
    assert loops[1].norm_ratio == pytest.approx(1.0)
    assert all(loop.cosine == pytest.approx(1.0) for loop in loops)  # Dropout is off
    assert os.environ == environment
    assert (PartialState._shared_state, GradientState._shared_state) == states


def test_a_mended_head_is_seen() -> None:
    """The figure is what the Trainer computes: of a head that divides by the count it is 1."""

    class Mended(BertForSequenceClassification):
        def forward(self, labels: Any = None, num_items_in_batch: Any = None, **inputs: Any) -> Any:  # type: ignore
            output: Any = super().forward(**inputs)
            reduction = "mean" if num_items_in_batch is None else "sum"
            loss = nn.functional.cross_entropy(output.logits, labels, reduction=reduction)
            output.loss = loss if num_items_in_batch is None else loss / num_items_in_batch
            return output

    loops, _ = compare_stock_loops(model(Mended), BATCH, OFF)
    assert loops[0].norm_ratio == pytest.approx(1.0)


def test_a_loop_that_fails_is_said() -> None:
    class OfSeveral(BertForSequenceClassification):
        def forward(self, **inputs: Any) -> Any:  # type: ignore
            if len(inputs["labels"]) == 1:
                raise ValueError("needs two examples")
            return super().forward(**inputs)

    loops, failed = compare_stock_loops(model(OfSeveral), BATCH, OFF)
    assert loops == ()
    assert failed == [f"{name}: ValueError: needs two examples" for name in NAMES]


def test_a_batch_is_a_model_s_own_where_all_of_it_goes_into_the_forward_with_labels() -> None:
    assert labelled(model(), BATCH) is not None
    assert labelled(model(), {"input_ids": BATCH["input_ids"]}) is None
    assert labelled(model(), BATCH | {"other": BATCH["labels"]}) is None
    assert labelled(nn.Linear(1, 1), BATCH) is None
    assert labelled(model(), (BATCH["input_ids"], BATCH["labels"])) is None
    positions = {"start_positions": BATCH["labels"], "end_positions": BATCH["labels"]}
    assert labelled(model(BertForQuestionAnswering), {"input_ids": BATCH["input_ids"], **positions}) is not None
