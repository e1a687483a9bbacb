"""Fewer blocks of a big model."""

import pytest
import torch
from torch import nn

from hf_accum.gradient_check import blocks


class Big(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(5))
        self.others = nn.ModuleList([nn.Linear(4, 4), nn.Identity(), nn.Linear(4, 4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_a_big_model_keeps_two_of_its_equal_blocks_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Big()
    assert blocks.keep_few_blocks(model) == ""
    monkeypatch.setattr(blocks, "MOST_PARAMETERS", 100)
    assert blocks.keep_few_blocks(model) == "3 of its blocks are left out, since it has 140 parameters"
    assert (len(model.layers), len(model.others)) == (2, 3)
    assert model(torch.ones(1, 4)).shape == (1, 4)
