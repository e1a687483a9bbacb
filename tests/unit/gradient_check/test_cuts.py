"""One unsplit batch beside its pieces."""

from itertools import chain
from typing import Any

import planted
import pytest
from planted import batches, encoder
from torch import nn

from hf_accum import check
from hf_accum.errors import UserError
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


def test_a_norm_of_each_example_hides_no_mean() -> None:
    """InstanceNorm keeps statistics as BatchNorm does, and does not use them in training."""
    data = [{name: of[:, :5] for name, of in batch.items()} for batch in batches(lengths=(5,) * 8)]
    model = encoder(planted.OverPositions(nn.InstanceNorm1d(planted.WIDTH, track_running_stats=True)))
    assert "batch_statistics" not in kinds(model, planted.mean, data)


def test_a_part_that_is_there_once_in_each_batch_is_told_by_how_the_loss_grows() -> None:
    def with_penalty(model: nn.Module, batch: Any) -> Any:
        return planted.summed(model, batch) + sum((p**2).sum() for p in model.parameters())

    (finding,) = check(encoder(), with_penalty, batches(False), stock=False).findings
    assert finding.kind == "unexplained"
    assert "a penalty on the weights" in finding.why


@pytest.mark.filterwarnings("ignore:std")
def test_an_example_that_is_not_finite_alone_is_told_beside_the_reason() -> None:
    def spread(model: nn.Module, batch: Any) -> Any:
        return planted.summed(model, batch) + planted.logits(model, batch).std(0).sum()

    report = check(encoder(), spread, batches(False), stock=False)
    assert report.kinds == ("interaction", "not_finite")
    assert "by themselves" in report.findings[1].why


def test_the_module_that_sees_others_is_named_whichever_example_shows_it() -> None:
    class ByLongest(planted.Encoder):
        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return super().forward(input_ids, attention_mask) / attention_mask.sum(1).max()

    data = batches(False, (9, 4, 2, 9, 5, 3, 8, 6))  # the first is as long as all together
    finding = check(ByLongest(), planted.summed, data, stock=False).findings[0]
    assert (finding.kind, finding.where[0]) == ("interaction", "ByLongest")


def test_an_assertion_about_the_number_of_examples_is_said() -> None:
    def of_two(model: nn.Module, batch: Any) -> Any:
        assert len(batch["labels"]) > 1, "needs two"
        return planted.summed(model, batch)

    finding = check(encoder(), of_two, batches(), stock=False).findings[0]
    assert finding.kind == "unexplained"
    assert "AssertionError: needs two" in finding.why


def test_rows_that_weigh_nothing_are_refused() -> None:
    data = [batch | {"labels": batch["labels"] * 0 - 100} for batch in batches()]
    with pytest.raises(UserError, match="weigh 0 together"):
        kinds(encoder(), planted.summed, data)
