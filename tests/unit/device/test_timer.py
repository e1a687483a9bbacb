"""Times of work on a device, read without waiting for it."""

from typing import Any

import pytest
import torch

from hf_accum.device.timer import Stopwatch


def test_on_a_cpu_it_is_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 12.5])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    stopwatch = Stopwatch.on(torch.device("cpu"))
    assert stopwatch is not None
    stopwatch.stop()
    assert stopwatch.read() == 2.5


def test_a_device_whose_events_make_the_host_wait_is_not_timed() -> None:
    assert Stopwatch.on(torch.device("mps")) is None
    assert Stopwatch.on(torch.device("meta")) is None


def test_on_an_accelerator_there_is_no_time_until_the_device_has_come_to_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Event:
        """Of a queue that is at `now`."""

        now, made = 0, 0

        def __init__(self, device: torch.device, enable_timing: bool) -> None:
            assert enable_timing
            Event.made += 1
            self.at = 7 * Event.made

        def record(self) -> None:
            pass

        def query(self) -> bool:
            return Event.now >= self.at

        def elapsed_time(self, end: Any) -> float:
            return 1000.0 * (end.at - self.at)  # milliseconds

    monkeypatch.setattr(torch, "Event", Event)
    stopwatch = Stopwatch.on(torch.device("cuda"))
    assert stopwatch is not None
    stopwatch.stop()
    assert stopwatch.read() is None
    Event.now = 14
    assert stopwatch.read() == 7.0
