"""BatchNorm that keeps the statistics that it came with."""

import pytest
import torch
from torch import nn

from hf_accum.models.batch_norm import freeze_statistics, has_frozen_statistics, refuse_statistics_of_ranks


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


class Ghost(nn.BatchNorm2d):
    """A kind of its own."""


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.BatchNorm1d(3, track_running_stats=False), "a BatchNorm1d, has no statistics of its own"),
        (nn.SyncBatchNorm(3), "a SyncBatchNorm, is a kind of BatchNorm that is not known here"),
        (Ghost(3), "a Ghost, is a kind of BatchNorm that is not known here"),
    ],
)
def test_layers_that_cannot_be_frozen_are_refused(layer: nn.Module, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^`batch_norm` frozen: 0, {reason}: `batch_norm micro_batch`"):
        freeze_statistics(nn.Sequential(layer))
    assert freeze_statistics(nn.Linear(2, 2)) == 0


def test_statistics_of_the_micro_batch_are_of_one_rank() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    refuse_statistics_of_ranks(model, 1)
    refuse_statistics_of_ranks(nn.Linear(2, 2), 2)
    with pytest.raises(ValueError, match="`batch_norm` micro_batch: has to be frozen on 2 ranks"):
        refuse_statistics_of_ranks(model, 2)
    freeze_statistics(model)
    refuse_statistics_of_ranks(model, 2)
