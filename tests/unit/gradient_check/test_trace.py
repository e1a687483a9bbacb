"""Where two forwards part."""

import planted
import torch
from planted import batches, encoder
from torch import nn

from hf_accum.gradient_check.probe import Probe
from hf_accum.gradient_check.trace import by_example, by_position, calls_of, class_of, first_difference, kind_of


def test_the_first_module_that_differs_by_itself_is_named() -> None:
    probe = Probe(encoder(nn.Dropout(0.5)), planted.summed)
    batch = batches()[0]
    calls = [calls_of(probe, batch, seed) for seed in (0, 1, 0)]
    assert [call.name for call in calls[0]] == ["embed", "attention", "between", "out", ""]
    assert first_difference(calls[0], calls[1], 1e-9) == "between"
    assert first_difference(calls[0], calls[2], 1e-9) is None
    assert kind_of(probe, "between") == "between (Dropout)"
    assert kind_of(probe, "") == "Encoder"
    assert class_of(probe, "between") is nn.Dropout
    assert not any(module._forward_hooks for module in probe.model.modules())


def test_a_module_that_writes_into_its_input_is_named() -> None:
    probe = Probe(encoder(nn.Dropout(0.5, inplace=True)), planted.summed)
    one, other = (calls_of(probe, batches()[0], seed) for seed in (0, 1))
    assert first_difference(one, other, 1e-9) == "between"


class Skips(nn.Module):
    """Leaves its first layer out, as layerdrop does."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Tanh(), nn.Dropout(0.0)])
        self.is_skipped = False

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[self.is_skipped :]:
            states = layer(states)
        return states


def test_what_leaves_a_module_out_is_named() -> None:
    between = Skips()
    probe = Probe(encoder(between), planted.summed)
    one = calls_of(probe, batches()[0])
    probe.model.get_submodule("between").is_skipped = True  # type: ignore[assignment]
    other = calls_of(probe, batches()[0])
    assert len(one) == len(other) + 1
    assert first_difference(one, other, 1e-9) == first_difference(other, one, 1e-9) == "between"


def test_an_example_is_found_among_others_and_real_positions_beside_padding() -> None:
    whole, alone = torch.arange(24.0).reshape(4, 3, 2), torch.arange(6.0, 12.0).reshape(1, 3, 2)
    align = by_example(1, 4)
    for first, second in ((whole, alone), (whole.flatten(0, 1), alone.flatten(0, 1))):  # also of flattened positions
        aligned = align(first, second)
        assert aligned is not None
        assert torch.equal(*aligned)
    assert align(whole, torch.ones(3)) is None

    real = torch.tensor([[True, True, False], [True, False, False]])
    short = torch.arange(12.0).reshape(2, 3, 2)
    for is_left in (False, True):
        more = torch.full((2, 4, 2), -1.0)
        aligned = by_position(real, 4, is_left)(short, torch.cat([more, short] if is_left else [short, more], 1))
        assert aligned is not None
        assert torch.equal(*aligned)
        assert len(aligned[0]) == 3
    assert by_position(real, 4, False)(short, torch.ones(2, 5, 2)) is None
