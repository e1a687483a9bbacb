"""The time that work takes on a device, without waiting for the device."""

import time
from typing import Any

import torch

_TIMED = frozenset({"cpu", "cuda", "xpu"})  # ROCm's are cuda


class Stopwatch:
    """Started when it is made; `stop` it, and `read` it later.

    On a CPU the wall clock. On an accelerator two events in its queue of work, which know their times once the device
    has come to them.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = self._now()
        self._end: Any = None

    @staticmethod
    def on(device: torch.device) -> "Stopwatch | None":
        """Started; None on devices (MPS) whose events make the host wait."""
        return Stopwatch(device) if device.type in _TIMED else None

    def stop(self) -> None:
        """The work has been queued."""
        self._end = self._now()

    def read(self) -> float | None:
        """Seconds from start to stop, or None while the device has not come to the end."""
        if self._device.type == "cpu":
            return self._end - self._start
        return self._start.elapsed_time(self._end) / 1000 if self._end.query() else None

    def _now(self) -> Any:
        if self._device.type == "cpu":
            return time.perf_counter()
        event = torch.Event(self._device, enable_timing=True)
        event.record()
        return event
