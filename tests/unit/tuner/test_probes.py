"""Micro-batches run for real: what they take is measured, and afterwards all is as it was."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn
from workload_cases import CPU, make_workload

from hf_accum.device.memory import VirtualMemory
from hf_accum.tuner.prediction import predict
from hf_accum.tuner.probes import Prober, leaving_no_trace


def test_buffers_gradients_modes_and_random_numbers_are_as_before_after_an_error_too() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).train()
    model[2].eval()
    gradient = torch.ones(3, 3)
    model[0].weight.grad = gradient
    buffers = [buffer.clone() for buffer in model.buffers()]
    state = torch.get_rng_state()

    def fail() -> None:
        with leaving_no_trace(model, CPU):
            model.train()
            model(torch.randn(4, 3)).sum().backward()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert model[0].weight.grad is gradient
    assert model[0].bias.grad is None
    assert all(torch.equal(now, then) for now, then in zip(model.buffers(), buffers, strict=True))
    assert [module.training for module in model] == [True, True, False]
    assert torch.equal(torch.get_rng_state(), state)


def prober(measured: list[int | None], limit_bytes: int = 1000) -> Prober:
    """On a device that measures made-up bytes, of 100 bytes an example as predicted, 40 in use from the start."""
    model = nn.Linear(1, 1, bias=False)
    results = iter(measured)
    memory: Any = SimpleNamespace(
        look_again=lambda: None,
        used_bytes=lambda held: 44,  # 4 of them are the weight's
        limit_bytes=limit_bytes,
        measure=lambda work, held: (work(), next(results))[1],
    )
    workload: Any = SimpleNamespace(model=model, trains=True, run=lambda *_: None)
    peak = SimpleNamespace(bytes_at=lambda n, length: 100 * n)
    prediction: Any = SimpleNamespace(training=peak, state_shapes=[])
    return Prober(workload, memory, CPU, prediction)


def test_the_line_goes_through_one_point_and_then_through_the_two_furthest_apart() -> None:
    probing = prober([160, 400, 310])
    assert probing.offset_bytes == 40.0
    assert probing.measured(100) == 140.0
    assert probing.run(1, 8).measured_bytes == 160
    assert (probing.slope, probing.offset_bytes) == (1.0, 60.0)
    probing.run(3, 8)
    assert (probing.slope, probing.offset_bytes) == pytest.approx((1.2, 40.0))
    probing.run(2, 8)  # between them, and off the line
    assert (probing.slope, probing.offset_bytes) == pytest.approx((1.2, 40.0))
    assert probing.budget_bytes() == pytest.approx((1000 - 40) / 1.2)


def test_a_probe_fits_within_the_limit_and_one_that_ran_out_moves_no_line() -> None:
    probing = prober([1000, 1001, None])
    probes = [probing.run(number, 8) for number in (1, 2, 3)]
    assert [probe.fits for probe in probes] == [True, False, False]
    assert [probe.predicted_bytes for probe in probes] == [100, 200, 300]
    assert (probing.slope, probing.offset_bytes) == pytest.approx((0.01, 999.0))
    assert all(probe.seconds is not None and probe.seconds >= 0 for probe in probes)
    assert probing.probes == probes


def test_a_real_probe_measures_what_was_predicted_and_leaves_no_gradient() -> None:
    work = make_workload("llama", lora=True, checkpointing=False, max_length=32)
    probing = Prober(work, cast(Any, VirtualMemory(10**9)), CPU, predict(work))
    probe = probing.run(3, 32)
    assert probe.measured_bytes is not None
    assert 0.95 <= probe.predicted_bytes / probe.measured_bytes <= 1.05
    assert all(parameter.grad is None for parameter in work.model.parameters())
