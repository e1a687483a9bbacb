"""Train and eval mode: given back module by module, after an error too."""

import pytest
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
