"""An error of the model's forward is the user's to avoid; one of any other place stays what it is."""

import pytest
import torch
from torch import nn

from hf_accum.config.lora import LoraConfig
from hf_accum.config.recipe import RecipeConfig
from hf_accum.errors import UserError
from hf_accum.models.forward_failure import naming_forward_failure


class Failing(nn.Module):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self) -> None:
        raise self.error


def test_an_error_of_the_forward_is_told_with_the_ways_out() -> None:
    error = ValueError("the length has to be a multiple of 64")
    inner = Failing(error)
    model = nn.ModuleList([inner])
    with (
        pytest.raises(
            UserError, match=r"a ModuleList fails .* in bf16 \(ValueError: the length .*\).* no .*rank 0"
        ) as told,
        naming_forward_failure(model, RecipeConfig(lora=LoraConfig(rank=4)), "bf16"),
    ):
        inner()
    assert told.value.__cause__ is error
    with (
        pytest.raises(UserError, match=r"in float32 .*avoid it: another `model`; `debug true`"),
        naming_forward_failure(model, RecipeConfig(lora=LoraConfig(rank=0)), "no"),
    ):
        inner()


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), UserError("a label that is none of the labels")]
)
def test_memory_and_mistakes_stay_what_they_are(error: Exception) -> None:
    model = Failing(error)
    with pytest.raises(type(error)) as raised, naming_forward_failure(model, RecipeConfig(), "no"):
        model()
    assert raised.value is error


def test_an_error_of_another_place_is_a_fault_of_the_program() -> None:
    other = Failing(KeyError("augmentation"))
    with pytest.raises(KeyError), naming_forward_failure(nn.Linear(1, 1), RecipeConfig(), "no"):
        other()
