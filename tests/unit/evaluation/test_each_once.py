"""Each example is predicted once, in the loader's order; over ranks: tests/distributed/alone_over_ranks.py."""

from typing import Any, NamedTuple

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hf_accum.errors import UserError
from hf_accum.evaluation.each_once import predict_each_once

BATCHES = [{"x": torch.arange(4.0).view(-1, 1)}, {"x": torch.arange(4.0, 5.0).view(-1, 1)}]


class Named(NamedTuple):
    value: Tensor


def predict(model: nn.Module, batch: Any) -> Any:
    assert not model.training
    assert not torch.is_grad_enabled()
    return {"twice": 2 * batch["x"], "both": (batch["x"], [batch["x"][:, 0]]), "named": Named(batch["x"])}


def test_predictions_of_any_form_are_joined_and_the_mode_stays(accelerator: Accelerator) -> None:
    model = nn.Linear(1, 1).train()
    found = predict_each_once(accelerator, model, BATCHES, predict)
    assert found["twice"].flatten().tolist() == [0, 2, 4, 6, 8]
    assert found["named"].value.flatten().tolist() == [0, 1, 2, 3, 4]
    assert found["both"][0].shape == (5, 1)
    assert found["both"][1][0].tolist() == [0, 1, 2, 3, 4]
    assert model.training


@pytest.mark.parametrize(
    ("loader", "predict", "message"),
    [
        ([], predict, "no batch"),
        (BATCHES, lambda m, b: {"mean": b["x"].mean()}, r"a prediction mean of the shape \(\): has to have a row"),
        (BATCHES, lambda m, b: (b["x"], b["x"][:1]), r"a prediction 1 of the shape \(1, 1\)"),
        (BATCHES, lambda m, b: torch.ones(len(b["x"]), len(b["x"])), r"rows of the shapes \(1,\) and \(4,\)"),
        (BATCHES, lambda m, b: "text", "a prediction of the type str"),
    ],
)
def test_what_is_no_prediction_is_refused(accelerator: Accelerator, loader: Any, predict: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        predict_each_once(accelerator, nn.Linear(1, 1), loader, predict)


def test_a_prepared_loader_is_refused(accelerator: Accelerator) -> None:
    loader = accelerator.prepare(DataLoader(TensorDataset(torch.arange(3))))
    with pytest.raises(UserError, match="a loader that accelerate prepared"):
        predict_each_once(accelerator, nn.Linear(1, 1), loader, predict)
