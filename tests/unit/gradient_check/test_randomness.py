"""Modules that draw random numbers, and what a forward leaves behind."""

import planted
import torch
from planted import batches, encoder
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from hf_accum import check
from hf_accum.gradient_check.probe import Probe
from hf_accum.gradient_check.randomness import find_randomness, find_state


def test_dropout_is_a_warning_and_a_fault_where_none_is_wanted() -> None:
    for deterministic in (False, True):
        report = check(encoder(nn.Dropout(0.2)), planted.summed, batches(), stock=False, deterministic=deterministic)
        assert report.ok is not deterministic
        assert "1 x Dropout (between)" in report.findings[0].why


def test_a_generator_of_its_own_is_a_fault_that_no_seed_sets() -> None:
    generator = torch.Generator()

    def draw(self: nn.Module, states: torch.Tensor) -> torch.Tensor:
        noise = torch.rand(states.shape, generator=generator, dtype=states.dtype)
        return states + noise if self.training else states

    (finding,) = check(encoder(planted.OnStates(draw)), planted.summed, batches(), stock=False).findings
    assert (finding.kind, finding.severity) == ("randomness", "fault")
    assert "no seed sets" in finding.why


def test_what_draws_is_named_by_modules_and_by_the_fields_of_the_config() -> None:
    config = BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8)
    model = BertForSequenceClassification(config)
    probe = Probe(model.train(), lambda model, batch: model(**batch).logits.sum())
    batch = {"input_ids": torch.arange(1, 13).reshape(3, 4)}
    (finding,), is_same = find_randomness(probe, batch, without=False)
    assert is_same
    assert {"hidden_dropout_prob=0.1", "attention_probs_dropout_prob=0.1"} <= set(finding.where)
    assert any("Dropout" in where for where in finding.where)
    assert find_randomness(probe, batch, without=False) == ([], True)  # it is off
    probe.model.train()
    assert find_randomness(probe, batch, without=False) == ([], True)  # and stays off


def test_a_buffer_that_a_forward_changes_is_named() -> None:
    probe = Probe(encoder(planted.RunningScale()).train(), planted.summed)
    (finding,) = find_state(probe, batches()[0])
    assert finding.where == ("between.seen",)
    assert find_state(Probe(encoder(planted.OverPositions()).train(), planted.summed), batches()[0]) == []
