"""An error of the model's forward is the user's to avoid; one of any other place stays what it is."""

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from torch import Tensor, nn

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


FLOAT32, WHOLE = "accelerate's mixed_precision no computes it in float32", "`lora.rank 0` trains it without adapters"


class Particular(nn.Module):
    """Takes no number of 16 bits, no adapter, or no such length, as told."""

    def __init__(self, *refused: str) -> None:
        super().__init__()
        self.layer, self.refused = nn.Linear(2, 2), refused

    def forward(self, values: Tensor) -> Tensor:
        if "length" in self.refused:
            raise ValueError("the length has to be a multiple of 64")
        if "adapter" in self.refused and type(self.layer) is not nn.Linear:
            raise TypeError("an adapter's layer")
        states = self.layer(values)
        if "16 bits" in self.refused and states.dtype == torch.bfloat16:
            raise ValueError("states of 16 bits")
        return states


def again(model: nn.Module, precision: str) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        model(torch.ones(1, 2))


@pytest.mark.parametrize(
    ("refused", "ways"),
    [
        (["16 bits"], [FLOAT32]),
        (["adapter"], [WHOLE]),
        (["length"], []),
        (["length", "adapter"], []),
        (["16 bits", "adapter"], []),  # one of them alone avoids nothing
    ],
)
def test_an_error_of_the_forward_is_told_with_the_ways_out_that_are_seen_to_work(
    refused: list[str], ways: list[str]
) -> None:
    config = RecipeConfig(lora=LoraConfig(rank=2))
    peft_config = PeftLoraConfig(r=2, target_modules=["layer"])
    model = get_peft_model(Particular(*refused), peft_config)  # type: ignore[arg-type]
    with (
        pytest.raises(UserError, match=r"`model`: a Particular fails in its own forward in bf16 \(") as told,
        naming_forward_failure(model, config, "bf16", again),
    ):
        again(model, "bf16")
    assert told.value.__cause__ is not None
    assert str(told.value).partition("; what avoids it: ")[2] == ", ".join(
        [*ways, "another `model`; `debug true` shows where"]
    )


def test_nothing_is_named_that_was_not_tried() -> None:
    model = Failing(ValueError("the length"))
    with (
        pytest.raises(UserError, match=r"in float32 .*avoids it: another `model`; `debug true`"),
        naming_forward_failure(model, RecipeConfig(), "no"),
    ):
        model()
    with (
        pytest.raises(UserError, match=r"in bf16 .*avoids it: another `model`; `debug true`"),
        naming_forward_failure(model, RecipeConfig(), "bf16", lambda *_: None),  # it fails at other lengths only
    ):
        model()


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
