"""Mistakes planted one at a time, each found as what it is and as nothing else; and none where there is none."""

from typing import Any

import planted
import pytest
import torch
import torch.nn.functional as F
from planted import batches, encoder
from torch import nn

from hf_accum import check
from hf_accum.errors import UserError

OTHER = encoder().double()


def kinds(model: nn.Module, loss: Any, data: Any = None, **how: Any) -> list[str]:
    return list(check(model, loss, batches() if data is None else data, stock=False, **how).kinds)


@pytest.mark.parametrize(
    ("kind", "loss", "of_tokens"),
    [
        ("mean_of_means", planted.mean, True),
        ("mean_of_means", planted.mean, False),
        ("mean_of_means", planted.weighted_mean, True),
        ("weight_of_output", planted.divided_by_predicted, False),
        ("weight_of_output", planted.weighted_by_predicted, False),
        ("padding", planted.mean_of_all_positions, False),
        ("interaction", planted.in_batch_negatives, False),
        ("interaction", planted.mean_of_negatives, False),
        ("interaction", planted.balanced_experts, True),
        ("not_finite", planted.mean_of_each_text, True),
        ("no_gradient", planted.detached, True),
        ("unexplained", planted.by_place, False),
        ("unexplained", planted.by_root, False),
    ],
)
def test_a_mistake_of_the_loss_is_found_as_what_it_is(kind: str, loss: Any, of_tokens: bool) -> None:
    assert kinds(encoder(), loss, batches(of_tokens)) == [kind]


@pytest.mark.parametrize(
    ("kind", "module"),
    [
        ("batch_statistics", planted.OverPositions()),
        ("batch_statistics", planted.HandWrittenNorm()),
        ("interaction", planted.OnStates(lambda _, states: states + 0.1 * states.mean(0))),
        ("randomness", nn.Dropout(0.3)),
        ("randomness", planted.DropPath()),
        ("randomness", planted.OnStates(lambda self, states: F.dropout(states, 0.2, self.training))),
        ("randomness", planted.OnStates(lambda _, states: states + 0.1 * torch.randn_like(states))),
        ("state", planted.Counter()),
        ("state", planted.RunningScale()),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_mistake_in_the_model_is_found_as_what_it_is(kind: str, module: nn.Module) -> None:
    found = check(encoder(module), planted.summed, batches(), stock=False)
    assert found.kinds == (kind,)
    assert any("between" in where for where in (*found.findings[0].where, found.findings[0].why))


def test_two_mistakes_are_both_found() -> None:
    assert kinds(encoder(nn.Dropout(0.2)), planted.mean) == ["randomness", "mean_of_means"]
    assert kinds(encoder(planted.OverPositions()), planted.mean) == ["batch_statistics", "mean_of_means"]
    assert kinds(encoder(is_masked=False), planted.mean) == ["mean_of_means", "padding"]


@pytest.mark.parametrize("module", [None, nn.Dropout(0.2), planted.OverPositions()])
def test_the_model_is_left_as_it_is(module: nn.Module | None) -> None:
    model = encoder(module)
    model.embed.eval()
    with planted.untouched(model):
        check(model, planted.mean, batches(), stock=False)


def test_what_holds_the_tensors_does_not_matter() -> None:
    def of_tuple(model: nn.Module, batch: Any) -> Any:
        inputs, labels = batch
        return planted.summed(model, {**inputs, "labels": labels})

    data = [({k: v for k, v in batch.items() if k != "labels"}, batch["labels"]) for batch in batches()]
    report = check(encoder(), of_tuple, data, stock=False)
    assert report.kinds == ()
    assert len(report.compared) == 8


@pytest.mark.parametrize(
    ("data", "loss", "said"),
    [
        ({}, planted.summed, "has to be a list"),
        ([], planted.summed, "has to be a list"),
        (["text"], planted.summed, "without tensors"),
        ([{key: value[:3] for key, value in batches()[0].items()}], planted.summed, "3 examples"),
        ([batches()[0] | {"more": torch.ones(3)}], planted.summed, "tensors of 4 and of 3 rows"),
        (None, lambda model, batch: planted.summed(model, batch, "none"), "has to be a single number"),
        (None, lambda model, batch: 1.0, "has to be a tensor"),
        (None, lambda model, batch: planted.summed(model, batch).detach(), "without a graph"),
        (
            None,
            lambda model, batch, other=OTHER: planted.summed(other, batch),
            "is a copy, and no other",
        ),
        (None, lambda model, batch: batch["absent"], r"KeyError: 'absent' \(test_check.py, line \d+\)"),
        (None, lambda model: 0, "takes 1 positional argument"),
    ],
)
def test_a_mistake_of_the_user_is_said(data: Any, loss: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check(encoder(), loss, batches() if data is None else data, stock=False)


def test_a_loss_that_is_not_finite_at_all_is_a_fault() -> None:
    report = check(encoder(), lambda model, batch: planted.summed(model, batch).neg().log(), batches(), stock=False)
    assert report.kinds == ("not_finite",)
    assert not report.ok
    assert report.not_compared


def test_a_gradient_of_nothing_but_0_is_said_to_tell_nothing() -> None:
    (finding,) = check(encoder(), lambda m, b: F.relu(planted.summed(m, b) * 0 - 1), batches(), stock=False).findings
    assert (finding.kind, finding.severity) == ("no_gradient", "warning")
    assert "says nothing" in finding.why
