"""BatchNorm that keeps the statistics that it came with."""

import math
from contextlib import nullcontext
from typing import Any

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


def channels_last(shape: tuple[int, ...]) -> torch.Tensor:
    """One image as its tokens lie, given back their places by a view: its first stride is the number of channels."""
    tokens = torch.randn(1, math.prod(shape[2:]), shape[1], dtype=torch.float64)
    return tokens.transpose(1, 2).view(shape)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    ("kind", "places"),
    [
        (nn.BatchNorm1d, ()),
        (nn.BatchNorm1d, (6,)),
        (nn.BatchNorm2d, (3, 4)),
        (nn.BatchNorm2d, (1, 1)),
        (nn.BatchNorm3d, (2, 3, 2)),
    ],
)
@pytest.mark.parametrize("num_channels", [1, 5])
@pytest.mark.parametrize(("of_input", "of_gradient"), [("first", "last"), ("last", "first"), ("last", "last")])
def test_the_gradient_of_one_image_is_right_in_any_layout(
    kind: Any, places: tuple[int, ...], num_channels: int, affine: bool, of_input: str, of_gradient: str
) -> None:
    layer = kind(num_channels, affine=affine).double()
    for tensor in layer.state_dict().values():
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 2)
    freeze_statistics(nn.Sequential(layer))
    shape, wide = (1, num_channels, *places), (1, num_channels, *[1] * len(places))
    lay = {"first": lambda: torch.randn(shape, dtype=torch.float64), "last": lambda: channels_last(shape)}
    image, gradient = lay[of_input]().requires_grad_(), lay[of_gradient]()
    layer(image).backward(gradient)

    scale = torch.rsqrt(layer.running_var + layer.eps) * (layer.weight.detach() if affine else 1)  # by hand
    normed = (image.detach() - layer.running_mean.view(wide)) * torch.rsqrt(layer.running_var + layer.eps).view(wide)
    assert image.grad is not None
    torch.testing.assert_close(image.grad, gradient * scale.view(wide), rtol=1e-12, atol=1e-12)
    if affine:
        kept = [dim for dim in range(len(shape)) if dim != 1]
        torch.testing.assert_close(layer.weight.grad, (gradient * normed).sum(kept), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(layer.bias.grad, gradient.sum(kept), rtol=1e-12, atol=1e-12)


class Tokens(nn.Module):
    """Tokens that are given back their places for a convolution and a BatchNorm, and are tokens again: as in CvT."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.mix = nn.Conv2d(3, 4, 3), nn.Linear(4, 4)
        self.conv, self.norm, self.head = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        places = self.patches(images)
        tokens = self.mix(places.flatten(2).transpose(1, 2))
        mixed = self.norm(self.conv(tokens.permute(0, 2, 1).view(places.shape)))
        return self.head(mixed.flatten(2).permute(0, 2, 1).tanh().mean(1))


@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
def test_six_single_images_have_the_gradient_of_all_six(precision: str) -> None:
    model = Tokens().double() if precision == "float64" else Tokens()
    freeze_statistics(model)
    images = torch.randn(6, 3, 6, 7, dtype=next(model.parameters()).dtype)
    context = torch.autocast("cpu", torch.bfloat16) if precision == "bfloat16" else nullcontext()

    def gradients(size: int) -> list[torch.Tensor]:
        model.zero_grad()
        for part in images.split(size):
            with context:
                loss = model(part).pow(2).sum()
            loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    close = 1e-12 if precision == "float64" else 0.1
    for single, together in zip(gradients(1), gradients(6), strict=True):
        torch.testing.assert_close(single, together, rtol=close, atol=close)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_what_it_computes_is_that_of_a_layer_in_eval_mode_to_the_bit(layout: torch.memory_format) -> None:
    plain = nn.BatchNorm2d(4).eval()
    frozen = nn.BatchNorm2d(4)
    frozen.load_state_dict(plain.state_dict())
    freeze_statistics(nn.Sequential(frozen))
    images = torch.randn(3, 4, 5, 5).contiguous(memory_format=layout)
    for type_of in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16, enabled=type_of != torch.float32):
            assert torch.equal(frozen(images.to(type_of)), plain(images.to(type_of)))
    assert list(frozen.state_dict()) == list(plain.state_dict())


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
