"""The first layer in which two forwards differ, and outputs moved by a rounding."""

import torch
from torch import nn

from hf_accum.gradient_check.layers import first_difference, rounded_otherwise


class Mixing(nn.Module):
    """Each token sees the mean of all."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens + tokens.mean(1, keepdim=True)


class AddsInPlace(nn.Module):
    """To its inputs."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens += tokens.mean(1, keepdim=True)
        return tokens


def test_the_innermost_layer_that_differs_first_is_named_by_the_values_that_both_have() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.ReLU(), Mixing()), nn.Linear(3, 2))
    tokens = torch.randn(1, 4, 3)
    padded = torch.cat([tokens, torch.zeros(1, 2, 3)], dim=1)
    layer = first_difference(model, lambda: model(tokens), lambda: model(padded))
    assert str(layer) == "layer 1.1 (Mixing)"
    assert first_difference(model[0], lambda: model[0](tokens), lambda: model[0](padded)) is None
    assert first_difference(model, lambda: model(tokens), lambda: model(tokens * (1 + 1e-7))) is None


class CountsFromTheEnd(nn.Module):
    """Positions as XLNet's: the values of one differ where the text is longer, and what is read of them does not."""

    def __init__(self) -> None:
        super().__init__()
        self.positions, self.linear = nn.Identity(), nn.Linear(3, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        positions = self.positions(torch.arange(-tokens.shape[1], tokens.shape[1]).float())
        return self.linear(tokens + positions[tokens.shape[1] :, None])


class ReadsTheLast(nn.Module):
    """A head on the last token."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens[:, -1]


class InBlocks(nn.Module):
    """Of two tokens each: a longer text has more calls of the layer inside, and the same values."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.inner(block) for block in tokens.split(2, dim=1)], dim=1)


def test_more_calls_of_a_layer_are_no_difference_where_what_is_around_it_gives_the_same() -> None:
    tokens = torch.randn(1, 4, 3)
    padded = torch.cat([tokens, torch.zeros(1, 2, 3)], dim=1)
    model = nn.Sequential(InBlocks(), Mixing())
    layer = first_difference(model, lambda: model(tokens), lambda: model(padded))
    assert str(layer) == "layer 1 (Mixing)"
    again = nn.Sequential(nn.Linear(3, 3))
    twice = first_difference(again, lambda: again(tokens), lambda: again(again(tokens)))
    assert str(twice) == "layer 0 (Linear)", "there nothing around it gives the same"


def test_a_difference_that_stays_within_a_module_is_passed_over() -> None:
    model = nn.Sequential(CountsFromTheEnd(), ReadsTheLast())
    tokens = torch.randn(1, 4, 3)
    padded = torch.cat([tokens, torch.zeros(1, 2, 3)], dim=1)
    layer = first_difference(model, lambda: model(tokens), lambda: model(padded))
    assert str(layer) == "layer 1 (ReadsTheLast)"


def test_outputs_are_compared_as_they_were_before_a_later_layer_changed_them() -> None:
    model = nn.Sequential(nn.Linear(3, 3), AddsInPlace())
    tokens = torch.randn(1, 4, 3)
    layer = first_difference(model, lambda: model(tokens), lambda: model(torch.cat([tokens, tokens * 9], 1)))
    assert str(layer) == "layer 1 (AddsInPlace)"


def test_what_is_run_between_is_not_compared() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    tokens = torch.randn(2, 3)
    assert first_difference(model, lambda: model(tokens), lambda: model(tokens), lambda: model(tokens * 2)) is None


def test_another_path_through_the_model_is_a_difference() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    tokens = torch.randn(2, 3)
    assert str(first_difference(model, lambda: model(tokens), lambda: model[1](tokens))) == "layer 1 (ReLU)"


def test_outputs_are_moved_by_one_unit_in_the_last_place_while_it_lasts() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = nn.Sequential(nn.Linear(8, 64)).to(dtype)
        inputs = torch.randn(4, 8, dtype=dtype)
        before = model(inputs)
        with rounded_otherwise(model, torch.Generator().manual_seed(0)):
            moved = model(inputs)
            moved.sum().backward()
        relative = ((moved - before) / before).detach().float().abs()
        eps = torch.finfo(dtype).eps
        assert 0.5 * eps < float(relative.mean()) <= 1.1 * eps
        assert torch.equal(model(inputs), before)
