"""Linear layers by another library: the same outputs, whatever the input's shape, and only where it is faster."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from hf_accum.models import onednn
from hf_accum.models.onednn import use_onednn_where_faster


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(48, 32), nn.GELU(), nn.Linear(32, 32, bias=False), nn.Linear(32, 3)).eval()


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine's CPU."""
    times = iter((1.0, 0.5))
    monkeypatch.setattr(onednn, "_seconds", lambda work: (work(), next(times))[1])


INPUTS: dict[str, Any] = {
    "one row": lambda: torch.randn(48),
    "a matrix": lambda: torch.randn(5, 48),
    "a batch": lambda: torch.randn(3, 7, 48),
    "more axes": lambda: torch.randn(2, 3, 4, 48),
    "no row": lambda: torch.randn(0, 48),
    "a batch of no row": lambda: torch.randn(2, 0, 48),
    "transposed": lambda: torch.randn(48, 5).T,
    "every other": lambda: torch.randn(3, 14, 48)[:, ::2],
    "expanded": lambda: torch.randn(1, 48).expand(6, 48),
    "a part of each row": lambda: torch.randn(4, 96)[:, 48:],
}


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.usefixtures("faster")
def test_outputs_are_those_of_float64_within_rounding(kind: str) -> None:
    model, rows = make_model(), INPUTS[kind]()
    exact = copy.deepcopy(model).double()
    assert use_onednn_where_faster(model)
    assert all(type(layer) is not nn.Linear for layer in model)
    with torch.no_grad():
        found, wanted = model(rows), exact(rows.double())
    assert found.shape == wanted.shape
    torch.testing.assert_close(found.double(), wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.usefixtures("faster")
def test_weights_that_are_shared_stay_shared_and_are_saved_as_before() -> None:
    model = nn.ModuleDict({"words": nn.Embedding(20, 8), "head": nn.Linear(8, 20, bias=False)})
    model["head"].weight = model["words"].weight  # type: ignore[assignment]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert use_onednn_where_faster(model)
    assert model["head"].weight is model["words"].weight
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_where_it_is_not_faster_layers_stay_torch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((1.0, 0.95))
    monkeypatch.setattr(onednn, "_seconds", lambda work: next(times))
    model = make_model()
    assert not use_onednn_where_faster(model)
    assert [type(layer) for layer in model] == [nn.Linear, nn.GELU, nn.Linear, nn.Linear]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_and_models_without_layers_are_left_alone(dtype: torch.dtype) -> None:
    model = make_model().to(dtype)
    assert not use_onednn_where_faster(model)
    assert type(model[0]) is nn.Linear
    assert not use_onednn_where_faster(nn.Conv2d(3, 4, 2))


def test_what_is_measured_are_the_layers_own_products() -> None:
    seen: list[torch.Tensor] = []

    def watched(work: Any) -> float:
        seen.append(work())
        return 1.0

    model = make_model()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onednn, "_seconds", watched)
        use_onednn_where_faster(model)
    usual, other = seen
    assert usual.shape == (256, 32)
    torch.testing.assert_close(other, usual)
    torch.testing.assert_close(usual, model[0](torch.ones(256, 48)))
