"""A summed loss over its weight is torch's own mean loss."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from hf_accum.accumulation.losses import IGNORE, BinaryCrossEntropy, CrossEntropy, SquaredError


@given(
    num_items=st.integers(1, 20),
    num_classes=st.integers(2, 6),
    weighted=st.booleans(),
    smoothing=st.sampled_from([0.0, 0.1, 0.9]),
    seed=st.integers(0, 1000),
)
def test_cross_entropy(num_items: int, num_classes: int, weighted: bool, smoothing: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_items, num_classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, num_classes, (num_items,), generator=generator)
    labels[1::3] = IGNORE
    weights = torch.rand(num_classes, generator=generator, dtype=torch.float64) + 0.1 if weighted else None
    loss = CrossEntropy(weights, smoothing)
    expected = F.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing, ignore_index=IGNORE)
    assert float(loss(logits, labels)) / loss.weight(labels) == pytest.approx(float(expected), rel=1e-12)


def test_cross_entropy_of_token_logits_counts_the_labels_that_are_not_ignored() -> None:
    labels = torch.tensor([[0, IGNORE, 2], [1, 1, IGNORE]])
    assert CrossEntropy().weight(labels) == 4
    assert CrossEntropy(torch.tensor([1.0, 2.0, 4.0])).weight(labels) == 1 + 4 + 2 + 2
    logits = torch.randn(2, 3, 3)
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    assert torch.equal(CrossEntropy()(logits, labels), expected)


def test_nothing_but_ignored_labels_weighs_nothing_and_has_no_loss() -> None:
    labels = torch.full((3,), IGNORE)
    logits = torch.randn(3, 4, requires_grad=True)
    loss = CrossEntropy()(logits, labels)
    assert CrossEntropy().weight(labels) == 0
    assert loss.item() == 0
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad.any()


@given(seed=st.integers(0, 1000), weighted=st.booleans())
def test_binary_cross_entropy(seed: int, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 2, (5, 3), generator=generator).double()
    weights = torch.tensor([3.0, 1.0, 0.2], dtype=torch.float64) if weighted else None
    loss = BinaryCrossEntropy(weights)
    expected = F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights)
    assert loss.weight(labels) == 15
    assert float(loss(logits, labels)) / 15 == pytest.approx(float(expected), rel=1e-12)


def test_binary_cross_entropy_leaves_out_ignored_pairs() -> None:
    logits, labels = torch.randn(2, 2), torch.tensor([[1.0, IGNORE], [0.0, 1.0]])
    kept = torch.tensor([[True, False], [True, True]])
    expected = F.binary_cross_entropy_with_logits(logits[kept], labels[kept], reduction="sum")
    assert BinaryCrossEntropy().weight(labels) == 3
    assert torch.allclose(BinaryCrossEntropy()(logits, labels), expected)


def test_squared_error() -> None:
    logits, labels = torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 5.0])
    assert SquaredError().weight(labels) == 2
    assert SquaredError()(logits, labels).item() == 1 + 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_logits_are_summed_in_float32(dtype: torch.dtype) -> None:
    logits = torch.randn(4096, 3).to(dtype)
    labels = torch.randint(0, 3, (4096,))
    cases = [
        (CrossEntropy(), logits, labels),
        (BinaryCrossEntropy(), logits, F.one_hot(labels).float()),
        (SquaredError(), logits[:, :1], labels.float()),
    ]
    for loss, given_logits, targets in cases:
        summed = loss(given_logits, targets)
        assert summed.dtype == torch.float32
        assert torch.allclose(summed.double(), loss(given_logits.double(), targets), rtol=1e-5)


@pytest.mark.parametrize("weights", [[1.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [float("inf"), 1.0]])
def test_weights_that_are_not_positive_and_finite_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match=r"class weights .* finite number above 0"):
        CrossEntropy(torch.tensor(weights))
    with pytest.raises(ValueError, match=r"positive weights .* finite number above 0"):
        BinaryCrossEntropy(torch.tensor(weights))


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_smoothing_outside_its_range_is_refused(smoothing: float) -> None:
    with pytest.raises(ValueError, match="label smoothing"):
        CrossEntropy(label_smoothing=smoothing)
