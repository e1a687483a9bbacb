"""Which blocks of a model are alike, and a model with fewer of them."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_accum.tuner.repeated_blocks import find_repeated_blocks


class Block(nn.Module):
    def __init__(self, index: int, size: int = 4, kind: str = "full", dropout: float = 0.0) -> None:
        super().__init__()
        self.layer_idx = index
        self.kind = kind
        self.linear = nn.Linear(size, size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.linear(x))


class Model(nn.Module):
    def __init__(self, blocks: list[nn.Module], **config: Any) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.layers = nn.ModuleList(blocks)
        self.config = SimpleNamespace(**config)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.inner.layers:  # type: ignore[union-attr]
            x = block(x)
        return x


def found(model: nn.Module, at_least: int = 3) -> tuple[int, int] | None:
    blocks = find_repeated_blocks(model, at_least)
    return None if blocks is None else (blocks.first, blocks.number)


def test_blocks_that_differ_in_their_number_alone_are_alike() -> None:
    assert found(Model([Block(index) for index in range(6)])) == (0, 6)
    assert found(Model([Block(index) for index in range(6)]), at_least=7) is None


def frozen(block: Block) -> Block:
    block.requires_grad_(False)
    return block


@pytest.mark.parametrize(
    "other",
    [
        Block(0, size=5),
        Block(0, kind="sliding"),
        Block(0, dropout=0.1),
        frozen(Block(0)),
        Block(0).to(torch.bfloat16),
        nn.Identity(),
    ],
    ids=["size", "setting", "probability", "frozen", "type", "class"],
)
def test_another_one_ends_a_row_and_the_longest_row_is_taken(other: nn.Module) -> None:
    blocks = [Block(index) for index in range(7)]
    assert found(Model([*blocks[:3], other, *blocks[3:]])) == (4, 4)
    assert found(Model([*blocks[:4], other, *blocks[4:]])) == (0, 4)
    assert found(Model([other, *blocks])) == (1, 7)


def test_a_config_in_which_layers_differ_says_so() -> None:
    blocks: list[nn.Module] = [Block(index) for index in range(4)]
    assert found(Model(blocks, num_hidden_layers=4, layer_types=["full", "full", "full", "sliding"])) is None
    assert found(Model(blocks, num_hidden_layers=4, layer_types=["full"] * 4, sizes=[1, 2])) == (0, 4)


def test_a_shortened_model_computes_with_the_first_ones_and_is_whole_again() -> None:
    model = Model([nn.Identity(), *(Block(index) for index in range(6)), nn.Tanh()])
    blocks = find_repeated_blocks(model, 3)
    assert blocks is not None
    x, whole = torch.ones(2, 4), model.inner.layers
    with blocks.shortened(2):
        short = model(x)
    with pytest.raises(RuntimeError), blocks.shortened(2):
        model(torch.ones(3))
    assert torch.equal(short, torch.tanh(whole[2](whole[1](x))))  # type: ignore[index]
    assert model.inner.layers is whole
