"""Differences of two models' figures: the points of scikit-learn, the intervals of a bootstrap written out."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import f1_score

from hf_accum.errors import UserError
from hf_accum.evaluation.bootstrap import Bootstrapped
from hf_accum.evaluation.comparison import Difference, Rule, Side, compared
from hf_accum.evaluation.decisions import Decisions
from hf_accum.evaluation.judge import Judged

NAMES = ("a", "b", "c")
rng = np.random.default_rng(3)
TRUTH = rng.integers(0, 3, 60)
GROUPS = np.repeat(np.arange(20), 3)


def side(noise: float, names: tuple[str, ...] = NAMES) -> Side:
    """A model that is right as far as the noise lets it; its labels in some order."""
    order = [NAMES.index(name) for name in names]
    logits = (np.eye(3)[TRUTH] * 2 + np.random.default_rng(int(noise * 10)).normal(size=(60, 3)) * noise)[:, order]
    truth = np.array([order.index(label) for label in TRUTH])
    ids, ones = [f"0:{place}" for place in range(60)], np.ones(60)
    losses = -np.log(np.exp(logits)[np.arange(60), truth] / np.exp(logits).sum(axis=1))
    judged = Judged(ids, GROUPS, ones, logits.astype(np.float32), truth, float(losses.mean()), losses)
    return Side.of_each(judged, Decisions(names, False))


def judged_of(one: Side) -> Judged:
    assert one.judged is not None
    return one.judged


def test_points_and_intervals_are_those_of_a_bootstrap_by_hand() -> None:
    first, second = side(3.0), side(1.5)
    found = compared(first, second)
    predicted = [judged_of(one).outputs.argmax(axis=1) for one in (first, second)]
    for name, figure in (
        ("accuracy", lambda truth, chosen: (truth == chosen).mean()),
        ("macro_f1", lambda truth, chosen: f1_score(truth, chosen, average="macro", labels=[0, 1, 2])),
    ):
        assert found[name].first == pytest.approx(figure(TRUTH, predicted[0]))
        assert found[name].second == pytest.approx(figure(TRUTH, predicted[1]))
        differences = []
        for row in range(1_000):
            drawn = np.random.default_rng([0, row]).integers(0, 20, 20)
            rows = np.concatenate([np.flatnonzero(group == GROUPS) for group in drawn])
            of_each = [figure(TRUTH[rows], chosen[rows]) for chosen in predicted]
            differences.append(of_each[1] - of_each[0])
        assert found[name].interval == pytest.approx(tuple(np.percentile(differences, [2.5, 97.5])), abs=1e-9)
    assert found["loss"].first == pytest.approx(judged_of(first).loss)
    assert {"macro_auroc", "macro_average_precision"} <= found.keys()


def test_rows_that_are_read_with_other_entities_or_pixels_are_refused() -> None:
    """Types that one run alone predicts, and of which the rows have none, are no other labels."""

    def of(**supports: float) -> Side:
        by_class = {name: {"support": support} for name, support in supports.items()}
        return Side.of_figures(Bootstrapped({"num_texts": 60, "per_class": by_class}, GROUPS, []))

    assert compared(of(a=3.0, b=2.0), of(b=2.0, a=3.0, c=0.0)) == {}
    with pytest.raises(UserError, match="read different labels of the same rows"):
        compared(of(a=3.0, b=2.0), of(a=2.0, b=3.0))


def test_labels_in_another_order_are_the_same() -> None:
    first = side(3.0)
    for name, one in compared(first, side(3.0, ("c", "a", "b"))).items():
        assert one.first == pytest.approx(one.second), name
        assert one.interval == pytest.approx((0.0, 0.0), abs=1e-9)


def test_other_rows_labels_or_problems_are_refused() -> None:
    first = side(2.0)
    judged = judged_of(first)
    assert first.decisions is not None
    for other, message in (
        (Side.of_each(replace(judged, ids=judged.ids[::-1]), first.decisions), "different rows"),
        (Side.of_each(judged, Decisions(("a", "b", "d"), False)), "different labels"),
        (
            Side.of_each(replace(judged, references=(TRUTH + 1) % 3), first.decisions),
            "different labels of the same",
        ),
        (Side.of_each(judged, None), "different problems"),
    ):
        with pytest.raises(UserError, match=message):
            compared(first, other)


@pytest.mark.parametrize(
    ("rule", "interval", "is_kept"),
    [
        ("not_worse:macro_f1:0.01", (-0.009, 0.2), True),
        ("not_worse:macro_f1:0.01", (-0.011, 0.2), False),
        ("better:macro_f1", (0.001, 0.2), True),
        ("better:macro_f1", (0.0, 0.2), False),
        ("better:loss", (-0.2, -0.1), True),
        ("better:loss", (0.1, 0.2), False),
        ("not_worse:loss:0.1", (-0.5, 0.09), True),
        ("not_worse:loss:0.1", (-0.5, 0.11), False),
    ],
)
def test_a_rule_asks_for_the_whole_interval(rule: str, interval: tuple[float, float], is_kept: bool) -> None:
    figures: dict[str, Difference] = {name: Difference(0.5, 0.5, interval) for name in ("macro_f1", "loss")}
    assert Rule.of(rule).is_kept(figures) is is_kept


@pytest.mark.parametrize(
    "text",
    [
        "",
        "better",
        "better:",
        "not_worse:f1",
        "not_worse:f1:-1",
        "not_worse:f1:x",
        "not_worse:f1:inf",
        "other:f1",
        "better:f1:2",
    ],
)
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="has to be not_worse:FIGURE:MARGIN"):
        Rule.of(text)


def test_a_figure_that_is_not_there_or_has_no_interval_is_said() -> None:
    with pytest.raises(UserError, match="has to be one of f1"):
        Rule.of("better:f2").is_kept({"f1": Difference(0.5, 0.5, None)})
    with pytest.raises(UserError, match="has no interval on these rows"):
        Rule.of("better:f1").is_kept({"f1": Difference(0.5, 0.5, None)})
