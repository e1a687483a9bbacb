"""BatchNorm that keeps the statistics that it came with."""

import pytest
import torch
from torch import nn

from hf_accum.batch_norm import freeze_statistics, has_frozen_statistics


def test_frozen_layers_keep_their_statistics_in_train_mode_and_after_an_evaluation() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
    images = torch.randn(5, 3, 8, 8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not has_frozen_statistics(model)
    assert freeze_statistics(model) == freeze_statistics(model) == 1
    for mode in (True, False, True):
        model.train(mode)
        assert model[2].training == mode
        whole = model[:2](images)
        torch.testing.assert_close(whole, torch.cat([model[:2](image[None]) for image in images]))
    assert has_frozen_statistics(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    whole.sum().backward()
    assert model[1].weight.grad is not None  # weights are trained all the same


def test_layers_without_statistics_are_refused() -> None:
    with pytest.raises(ValueError, match="0, a BatchNorm1d, has no statistics of its own"):
        freeze_statistics(nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)))
    assert freeze_statistics(nn.Linear(2, 2)) == 0
