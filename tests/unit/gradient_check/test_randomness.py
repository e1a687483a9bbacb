"""Modules that draw random numbers, and what a forward leaves behind."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import planted
import pytest
import torch
from planted import batches, encoder
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, Wav2Vec2ForSequenceClassification

from hf_accum import check
from hf_accum.gradient_check.heads import made_up_rows, own_loss
from hf_accum.gradient_check.probe import Probe
from hf_accum.gradient_check.randomness import NUM_SEEDS, find_randomness, find_state
from hf_accum.gradient_check.tiny_configs import tiny_config


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


class LayerDrop(nn.Module):
    """Leaves a layer out, one time in ten."""

    def __init__(self, effect: float = 1.0) -> None:
        super().__init__()
        self.layer = nn.Linear(planted.WIDTH, planted.WIDTH)
        self.effect = effect

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        is_left_out = self.training and bool(torch.rand(()) < 0.1)
        return states if is_left_out else states + self.effect * self.layer(states)


def counted(model: nn.Module) -> tuple[Probe, list[int]]:
    """A probe, and the seeds of its forwards."""
    seeds: list[int] = []

    def loss(model: nn.Module, batch: planted.Batch) -> torch.Tensor:
        seeds.append(torch.initial_seed())
        return planted.summed(model, batch)

    return Probe(model, loss), seeds


def test_a_layer_that_is_left_out_one_time_in_ten_is_found_almost_surely() -> None:
    missed = 0.9**NUM_SEEDS + 0.1**NUM_SEEDS  # it shows under none of the seeds, or under all
    assert missed < 1e-4
    num_missed_by_two = 0
    for seed in range(0, 2000, 100):
        model = encoder(LayerDrop())
        model.between.train()
        probe, seeds = counted(model)
        probe.seed = seed
        (finding,), is_same = find_randomness(probe, batches()[0], without=False)
        assert is_same
        assert finding.severity == "warning"
        assert finding.where == ("1 x LayerDrop (between)",)
        assert len(seeds) <= NUM_SEEDS + 8
        assert find_randomness(probe, batches()[0], without=False) == ([], True)
        probe, _ = counted(encoder(LayerDrop()))
        probe.seed = seed
        num_missed_by_two += find_randomness(probe, batches()[0], without=False, num_seeds=2) == ([], True)
    assert num_missed_by_two > 10


def test_other_seeds_are_tried_only_while_nothing_shows_of_what_is_drawn() -> None:
    probe, seeds = counted(encoder(nn.Dropout(0.0)))
    assert find_randomness(probe, batches()[0], without=False) == ([], True)
    assert len(seeds) <= 4
    probe, seeds = counted(encoder(LayerDrop(effect=0.0)))
    assert find_randomness(probe, batches()[0], without=False) == ([], True)
    assert sorted(set(seeds)) == list(range(NUM_SEEDS))


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: float(torch.rand(()))])
def test_what_is_drawn_rarely_of_any_generator_is_found(draw: Callable[[], float]) -> None:
    between = planted.OnStates(lambda self, states: states * (2 if draw() < 0.03 else 1))
    ((finding,), _) = find_randomness(Probe(encoder(between), planted.summed), batches()[0], without=True)
    assert finding.severity == "fault"
    assert finding.kind == "randomness"


@pytest.mark.slow
def test_a_model_of_speech_with_layerdrop_is_compared_without_it() -> None:
    """Whose layers are left out in the loop of its encoder: a Trainer's gradients would differ by chance."""
    config = tiny_config("wav2vec2", num_labels=3)
    config.layerdrop = 0.1
    torch.manual_seed(0)
    model: Any = Wav2Vec2ForSequenceClassification(config)
    report = check(model, own_loss, [made_up_rows(model, "audio_classification")])
    drops, *others = report.findings
    assert (drops.kind, drops.severity) == ("randomness", "warning")
    assert "layerdrop=0.1" in drops.why
    assert [finding.kind for finding in others] == ["count_ignored"]
    assert {loop.name: round(loop.norm_ratio, 6) for loop in report.stock} == {
        "transformers' Trainer": 8.0,
        "accelerate's accumulate": 1.0,
    }


def test_a_buffer_that_a_forward_changes_is_named() -> None:
    probe = Probe(encoder(planted.RunningScale()).train(), planted.summed)
    (finding,) = find_state(probe, batches()[0])
    assert finding.where == ("between.seen",)
    assert find_state(Probe(encoder(planted.OverPositions()).train(), planted.summed), batches()[0]) == []
