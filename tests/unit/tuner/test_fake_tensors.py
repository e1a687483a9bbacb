"""A model's weights as fake tensors, and back. What is traced on them: test_tracing."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from hf_accum.tuner.fake_tensors import on_fake_tensors


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_inside_a_forward_has_shapes_and_afterwards_all_is_back(device: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)).to(device)
    model[2].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    before = [*model.parameters(), *model.buffers()]
    with on_fake_tensors(model):
        found = model(torch.ones(3, 4))
        assert isinstance(found, FakeTensor)
        assert (found.shape, found.device.type, found.requires_grad) == ((3, 4), "cpu", True)
        assert model[2].weight is model[0].weight
        assert not model[0].bias.requires_grad
    after = [*model.parameters(), *model.buffers()]
    assert all(one is other for one, other in zip(after, before, strict=True))
