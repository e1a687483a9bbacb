"""Experts of a limited capacity: which they are, set to another one meanwhile; and that a check finds them."""

from typing import Any

import planted
import pytest
from checked_models import experts_of
from torch import nn

from hf_accum import check
from hf_accum.gradient_check.expert_capacity import capacity_of, lowest_capacity, named, routers


def test_inside_the_capacity_is_another_and_afterwards_as_before() -> None:
    model = nn.Sequential(experts_of("nllb-moe", 5), nn.Linear(8, 8), experts_of("switch_transformers", 7))
    first, second = routers(model).values()
    assert lowest_capacity(model) == 5
    with capacity_of(model, 1):
        assert (first.expert_capacity, second.expert_capacity) == (1, 1)
    assert (first.expert_capacity, second.expert_capacity) == (5, 7)
    assert named(model) == "`expert_capacity` 5 of layer 0.router (NllbMoeTop2Router)"
    assert routers(nn.Linear(1, 1)) == {}


@pytest.mark.parametrize("capacity", [3, 1000])
def test_a_check_finds_them_whether_these_rows_reach_the_capacity_or_not(capacity: int) -> None:
    model = planted.encoder(experts_of("nllb-moe", capacity))
    found = check(model, planted.summed, planted.batches(), stock=False).findings
    assert [finding.kind for finding in found if finding.severity == "fault"][:1] == ["interaction"]
    assert f"by `expert_capacity` {capacity} of layer between.router (NllbMoeTop2Router)" in found[0].why
    switch: Any = planted.encoder(experts_of("switch_transformers", capacity))
    assert check(switch, planted.summed, planted.batches(), stock=False).kinds == ()
