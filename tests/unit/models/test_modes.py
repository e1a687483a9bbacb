"""Train and eval mode: given back module by module, after an error too."""

import pytest
import torch
from torch import nn

from hf_accum.models.modes import keeping_modes, not_training


def mixed() -> nn.Module:
    """In train mode, with a frozen layer in eval mode."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).train()
    model[1].eval()
    return model


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def test_each_module_has_its_mode_again_after_an_error_too() -> None:
    model = mixed()
    with keeping_modes(model):
        model.eval()
    assert modes(model) == [True, True, False]

    def fail() -> None:
        with keeping_modes(model):
            model.train()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert modes(model) == [True, True, False]


@pytest.mark.parametrize("was", [True, False])
def test_inside_nothing_trains_and_afterwards_the_model_is_as_it_was(was: bool) -> None:
    model = nn.Sequential(nn.Dropout()).train(was)

    def fail() -> None:
        with not_training(model):
            assert modes(model) == [False, False]
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert modes(model) == [was, was]


class Keeping(nn.Linear):
    """Keeps what it made of its weight for eval mode until it is told to train, as LeViT's attention does."""

    kept: torch.Tensor | None = None

    def train(self, mode: bool = True) -> "Keeping":
        super().train(mode)
        if mode:
            self.kept = None
        return self

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.training:
            return input @ self.weight.T
        if self.kept is None:
            self.kept = self.weight.T.clone()
        return input @ self.kept


def test_what_a_module_keeps_for_eval_mode_is_made_anew_of_trained_weights() -> None:
    layer, inputs = Keeping(2, 2), torch.eye(2)
    model = nn.Sequential(layer, nn.BatchNorm1d(2)).train()
    model[1].eval()
    for factor in (1.0, 3.0):
        with torch.no_grad(), keeping_modes(model):
            layer.weight.copy_(factor * torch.eye(2))
            model.eval()
            torch.testing.assert_close(layer(inputs), factor * inputs)
        assert modes(model) == [True, True, False]
