"""One unsplit batch beside its pieces."""

from itertools import chain
from typing import Any

import planted
import pytest
from planted import batches, encoder
from torch import nn

from hf_accum import check
from hf_accum.gradient_check.cuts import cuts_of


def kinds(model: nn.Module, loss: Any, data: Any = None, **how: Any) -> list[str]:
    return list(check(model, loss, batches() if data is None else data, stock=False, **how).kinds)


@pytest.mark.parametrize("num_examples", [4, 5, 8, 13])
def test_each_cut_has_each_example_once(num_examples: int) -> None:
    for name, cut in cuts_of(num_examples).items():
        assert sorted(chain(*cut)) == list(range(num_examples)), name
        assert all(cut), name


def test_frozen_statistics_are_right() -> None:
    model = encoder(planted.OverPositions())
    model.between.eval()
    assert kinds(model, planted.summed) == []


def test_a_weight_that_calls_the_model_is_found() -> None:
    model = encoder()
    assert kinds(model, planted.summed, batches(False), weight=lambda batch: planted.logits(model, batch).sum()) == [
        "weight_of_output"
    ]
    assert kinds(model, planted.summed, weight=lambda batch: len(batch["labels"])) == []
    assert kinds(model, planted.summed, weight=lambda batch: len(batch["labels"]) ** 2) == ["unexplained"]
    assert kinds(model, planted.summed, weight=lambda batch: batch["labels"].numel()) == ["padding"]


@pytest.mark.parametrize("of_tokens", [True, False])
def test_a_right_loss_has_no_finding(of_tokens: bool) -> None:
    report = check(encoder(), planted.summed, batches(of_tokens), stock=False)
    assert report.kinds == ()
    assert report.ok
    assert len(report.compared) == 8
    assert all(difference < 1e-12 for difference in report.compared.values())
    assert report.not_compared == ()


@pytest.mark.parametrize(("ignores", "found"), [(True, ["count_ignored"]), (False, [])])
def test_a_model_that_is_given_the_count_is_told_from_one_that_uses_it(ignores: bool, found: list[str]) -> None:
    assert kinds(planted.WithCount(ignores), lambda model, batch: model(**batch, num_items_in_batch=1)) == found


def test_a_mean_says_how_much_the_gradient_grows_and_where() -> None:
    (finding,) = check(encoder(), planted.mean, batches(False), stock=False).findings
    assert finding.numbers["norm / unsplit"] == pytest.approx(8.0)
    assert finding.numbers["pieces"] == 8
    assert finding.where[0] in dict(encoder().named_parameters())
    assert "over examples" in finding.why
