"""Classification: rows to examples, examples to batches, logits to predictions; weights as scikit-learn's."""

from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from tiny import make_tokenizer

from hf_accum.accumulation.losses import BinaryCrossEntropy, CrossEntropy, Objective, SquaredError
from hf_accum.data.source import BadRow
from hf_accum.tasks.labels import LabelColumn, Problem
from hf_accum.tasks.text_classification.task import TextClassification, build_objective, model_config

SINGLE: Problem = "single_label_classification"
MULTI: Problem = "multi_label_classification"
NAMES = ("absent", "mild", "severe")
PROBLEMS: tuple[Problem, ...] = (SINGLE, MULTI, "regression")
VALUES: dict[Problem, list[Any]] = {
    SINGLE: ["mild", "absent", "severe"],
    MULTI: ["mild|severe", [], ["absent"]],
    "regression": [0.5, "-2", 3],
}


def make_task(problem: Problem, objective: Objective | None = None, max_length: int = 16) -> TextClassification:
    labels = LabelColumn("label", problem, () if problem == "regression" else NAMES)
    return TextClassification("note", labels, objective or build_objective(labels), make_tokenizer(), max_length)


def encode(task: TextClassification, values: Sequence[Any], notes: Sequence[str]) -> list[Any]:
    rows = [
        (f"0:{i}", task.prepare({"note": n, "label": v})) for i, (n, v) in enumerate(zip(notes, values, strict=True))
    ]
    return task.encode(rows)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_rows_become_examples_and_a_batch(problem: Problem) -> None:
    notes = ["w1 w2 w3 w4", "w5", "w1 w2 w3 w4 w5 w6 w7 w8"]
    task = make_task(problem, max_length=6)
    examples = encode(task, VALUES[problem], notes)
    assert [e.id for e in examples] == ["0:0", "0:1", "0:2"]
    assert [e.length for e in examples] == [6, 3, 6]
    assert [e.num_truncated_tokens for e in examples] == [0, 0, 4]

    inputs, labels = task.collate(examples)
    expected = make_tokenizer()(notes, padding=True, truncation=True, max_length=6, return_tensors="pt")
    assert inputs.keys() == {"input_ids", "attention_mask"}
    for name, tensor in inputs.items():
        assert torch.equal(tensor, expected[name])
    match problem:
        case "single_label_classification":
            assert labels.dtype == torch.long
            assert labels.tolist() == [1, 0, 2]
        case "multi_label_classification":
            assert labels.dtype == torch.float32
            assert labels.tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 0]]
        case "regression":
            assert labels.dtype == torch.float32
            assert labels.tolist() == [0.5, -2, 3]


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_weights_of_examples_add_up_to_the_batch_s(problem: Problem) -> None:
    """What the window divides by, counted example by example, is what the loss says of the batch."""
    weights = torch.tensor([0.25, 1.0, 3.0], dtype=torch.float64)
    objective = CrossEntropy(weights) if problem == SINGLE else None
    task = make_task(problem, objective)
    examples = encode(task, VALUES[problem], ["w1", "w2 w3", "w4"])
    _, labels = task.collate(examples)
    assert [e.weight for e in examples] == {SINGLE: [1.0, 0.25, 3.0], MULTI: [3.0] * 3}.get(problem, [1.0] * 3)
    assert sum(e.weight for e in examples) == task.objective.weight(labels)


@pytest.mark.parametrize(
    ("row", "field"), [({"note": " ", "label": "mild"}, "note"), ({"note": "a", "label": "fatal"}, "label")]
)
def test_a_bad_row_is_said_to_be_one(row: dict[str, Any], field: str) -> None:
    with pytest.raises(BadRow) as error:
        make_task(SINGLE).prepare(row)
    assert error.value.field == field


@pytest.mark.parametrize("problem", PROBLEMS)
def test_predictions_are_the_logits_in_float32(problem: Problem) -> None:
    task = make_task(problem)
    examples = encode(task, VALUES[problem], ["w1", "w2 w3", "w4"])
    batch = task.collate(examples)
    logits = torch.randn(3, 1 if problem == "regression" else 3, dtype=torch.bfloat16)
    model: Any = lambda **_: SimpleNamespace(logits=logits)  # noqa: E731
    found = task.predict(model, batch)
    assert found.predictions.dtype == torch.float32
    assert torch.equal(found.predictions, logits.float().squeeze(-1) if problem == "regression" else logits.float())
    assert torch.equal(found.references, batch[1])
    assert float(found.loss) == float(task.summed_loss(model, batch))


@pytest.mark.parametrize("problem", PROBLEMS)
def test_figures_are_computed_before_the_training(problem: Problem) -> None:
    task = make_task(problem)
    task.check_metrics("mae" if problem == "regression" else "macro_auroc")
    with pytest.raises(ValueError, match="`best_metric` per_class: has to be one of"):
        task.check_metrics("per_class")


def test_the_model_s_config_names_the_labels() -> None:
    for problem in (SINGLE, MULTI):
        assert model_config(make_task(problem).labels) == {
            "problem_type": problem,
            "id2label": {0: "absent", 1: "mild", 2: "severe"},
            "label2id": {"absent": 0, "mild": 1, "severe": 2},
        }
    assert model_config(make_task("regression").labels) == {"problem_type": "regression", "num_labels": 1}


# Objectives


@given(st.lists(st.sampled_from("abc"), max_size=30))
def test_balanced_weights_are_those_of_scikit_learn(more: list[str]) -> None:
    labels = ["a", "b", "c", *more]
    column = LabelColumn("label", SINGLE, ("a", "b", "c"))
    expected = compute_class_weight("balanced", classes=np.array(["a", "b", "c"]), y=labels)
    counts = Counter(labels)
    balanced = build_objective(column, class_weights="balanced", label_counts=counts)
    roots = build_objective(column, class_weights="sqrt_balanced", label_counts=counts, label_smoothing=0.1)
    assert isinstance(balanced, CrossEntropy)
    assert isinstance(roots, CrossEntropy)
    assert balanced.class_weights is not None
    assert roots.class_weights is not None
    np.testing.assert_allclose(balanced.class_weights.numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(roots.class_weights.numpy(), np.sqrt(expected), rtol=1e-12)
    assert (balanced.label_smoothing, roots.label_smoothing) == (0.0, 0.1)


@pytest.mark.parametrize("kind", ["balanced", "sqrt_balanced"])
@pytest.mark.parametrize("counts", [{"absent": 3, "severe": 1}, None])
def test_a_class_without_rows_cannot_be_balanced(kind: str, counts: dict[str, int] | None) -> None:
    absent = "mild" if counts else "absent, mild, severe"
    with pytest.raises(ValueError, match=rf"`class_weights` {kind}: no row to train on has the label {absent};"):
        build_objective(LabelColumn("label", SINGLE, NAMES), class_weights=kind, label_counts=counts)


def test_each_problem_has_its_loss() -> None:
    torch.manual_seed(1)
    logits = torch.randn(5, 3)
    classes = torch.tensor([0, 1, 2, 1, 0])
    plain = build_objective(LabelColumn("label", SINGLE, NAMES), label_smoothing=0.2)
    torch.testing.assert_close(
        plain(logits, classes) / plain.weight(classes), F.cross_entropy(logits, classes, label_smoothing=0.2)
    )
    weighted = build_objective(LabelColumn("label", SINGLE, NAMES), class_weights=[1.0, 2.0, 0.5])
    torch.testing.assert_close(
        weighted(logits, classes) / weighted.weight(classes),
        F.cross_entropy(logits, classes, weight=torch.tensor([1.0, 2.0, 0.5])),
    )
    several = F.one_hot(classes, 3).float()
    for positive_weights in ([], [1.0, 4.0, 0.5]):
        binary = build_objective(LabelColumn("label", MULTI, NAMES), positive_weights=positive_weights)
        assert isinstance(binary, BinaryCrossEntropy)
        expected = F.binary_cross_entropy_with_logits(
            logits, several, pos_weight=torch.tensor(positive_weights) if positive_weights else None
        )
        torch.testing.assert_close(binary(logits, several) / binary.weight(several), expected)
    assert build_objective(LabelColumn("score", "regression")) == SquaredError()
