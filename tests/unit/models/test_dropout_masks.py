"""Dropout masks: the distribution that was asked for, from torch's generator, and torch's own masks when off."""

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from hf_accum.models import dropout_masks
from hf_accum.models.dropout_masks import draw_masks_fast


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(dropout_masks, "_torch_is_fast", lambda: False)
    draw_masks_fast()
    yield
    draw_masks_fast(False)


def mask(*shape: int, p: float, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.empty(shape, dtype=dtype).bernoulli_(p)


@pytest.mark.parametrize("p", [1e-4, 0.1, 0.25, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.bool])
def test_as_many_are_one_as_asked_for_and_none_knows_of_its_neighbours(p: float, dtype: torch.dtype) -> None:
    number = 2_000_001  # several parts, and an odd end
    values = mask(number, p=p, dtype=dtype).double()
    assert set(values.unique().tolist()) <= {0.0, 1.0}
    sigma = math.sqrt(p * (1 - p) / number)
    assert abs(values.mean().item() - p) < 5 * sigma
    for distance in (1, 2, dropout_masks._VALUES_AT_ONCE):
        both = (values[distance:] * values[:-distance]).mean().item()
        assert abs(both - p * p) < 6 * math.sqrt(p * p / number)


@pytest.mark.parametrize("p", [0.25 / 2**16, 1.5 / 2**16, 1 - 0.5 / 2**16])
def test_a_probability_between_two_numbers_of_sixteen_bits_is_kept_to(p: float) -> None:
    number = 2**26
    ones = sum(int(mask(number // 16, p=p, seed=seed).sum()) for seed in range(16))
    assert abs(ones - p * number) < 5 * math.sqrt(p * (1 - p) * number)


def test_a_million_parts_of_the_bits_are_equally_likely() -> None:
    """Runs of 8 values as numbers from 0 to 255: chi-squared with 255 degrees of freedom."""
    values = mask(8 * 200_000, p=0.5).view(-1, 8).long()
    counts = torch.bincount((values << torch.arange(8)).sum(1), minlength=256).double()
    expected = len(values) / 256
    assert 150 < ((counts - expected) ** 2 / expected).sum().item() < 380  # 1 in a million is outside


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=st.lists(st.integers(0, 7), max_size=4), seed=st.integers(0, 2**32))
def test_any_shape_and_the_same_seed_gives_the_same(shape: list[int], seed: int) -> None:
    first, second = mask(*shape, p=0.5, seed=seed), mask(*shape, p=0.5, seed=seed)
    assert first.shape == torch.Size(shape)
    assert torch.equal(first, second)


def test_strides_generators_and_the_ends() -> None:
    columns = torch.full((300, 400), 7.0).T
    assert columns.bernoulli_(0.5) is columns
    assert set(columns.unique().tolist()) == {0.0, 1.0}
    part = torch.full((10, 10), 7.0)
    part[:, ::2].bernoulli_(0.5)
    assert (part[:, 1::2] == 7).all()
    assert (part[:, ::2] <= 1).all()
    one, two = (torch.empty(999).bernoulli_(0.5, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)
    assert mask(1000, p=1.0).min() == 1
    assert mask(1000, p=0.0).max() == 0
    with pytest.raises(RuntimeError, match=r"p to be in \[0, 1\]"):
        torch.empty(3).bernoulli_(1.5)


def test_dropout_and_attention_use_it_and_torch_s_own_come_back() -> None:
    ones = torch.ones(1000, 100)
    query = torch.randn(1, 2, 50, 8)

    def drawn() -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(1)
        return (
            functional.dropout(ones, 0.1),
            functional.scaled_dot_product_attention(query, query, query, dropout_p=0.5),
        )

    fast = drawn()
    assert abs((fast[0] == 0).double().mean().item() - 0.1) < 0.005
    assert torch.equal(fast[0].unique(), torch.tensor([0.0, 1 / 0.9]))
    draw_masks_fast(False)
    own = drawn()
    draw_masks_fast()
    assert all(map(torch.equal, drawn(), fast))
    assert not any(map(torch.equal, own, fast))
    draw_masks_fast()  # twice is once
    draw_masks_fast(False)
    assert all(map(torch.equal, drawn(), own))


def test_nothing_is_changed_where_torch_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = mask(1000, p=0.5)
    draw_masks_fast(False)
    own = mask(1000, p=0.5)
    monkeypatch.setattr(dropout_masks, "_torch_is_fast", lambda: True)
    draw_masks_fast()
    assert torch.equal(mask(1000, p=0.5), own)
    assert not torch.equal(own, fast)
