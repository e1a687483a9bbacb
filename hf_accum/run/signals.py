"""Ending a run early, on request: by a signal, or when its time is over; all ranks after the same step."""

import ctypes
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from hf_accum.distributed.ranks import Ranks
from hf_accum.errors import Stopped

_SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")  # the last one is Slurm's, by --signal=USR1@300
_SAME_REQUEST_SECONDS = 2.0
_TIME_OVER, _LAUNCHER_ENDED = -1, -2
_PR_SET_PDEATHSIG = 1


class StopRequest:
    """Whether this process was asked to stop. As a context manager it listens to SIGTERM, SIGINT and SIGUSR1.

    The first signal is answered by a line and noted: `is_asked` tells the windows' stream, which ends on all ranks
    with the window that they agree on next, so that the few micro-batches made ahead are still computed. So it is
    when `max_minutes` have passed since this object was made, and when `accelerate launch` ends before this process,
    which would otherwise go on unseen.

    A second signal ends the process at once, as signals do by default. Signals within two seconds of the first one
    are the same request: Ctrl-C reaches a rank from the terminal, and again from torchrun.

    `after` what it stops, and what is done `then`, is for that line.

    Signals that are ignored (nohup) stay so. Handlers can be set in the main thread only; in another one nothing but
    the time limit is looked at.
    """

    def __init__(
        self, max_minutes: float | None = None, *, after: str = "this window", then: str = "the run is saved then"
    ) -> None:
        self._after, self._then = after, then
        self._deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self._asked_by = 0
        """The first signal's number, or one of the numbers below zero."""
        self._asked_at = 0.0
        self._window_at, self._window_seconds = time.monotonic(), 0.0
        self._is_evaluating = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        """Listen."""
        self._window_at = time.monotonic()
        if threading.current_thread() is not threading.main_thread():
            return self
        for name in _SIGNALS:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self._former[number] = signal.signal(number, self._on_signal)
        if sys.platform == "linux" and "ACCELERATE_MIXED_PRECISION" in os.environ:  # started by accelerate launch
            number = _launcher_signal()
            self._former[number] = signal.signal(number, self._on_launcher_ended)
            _tell_when_parent_ends(number)
        return self

    def __exit__(self, *_: object) -> None:
        """Put the former handlers back."""
        if self._former and sys.platform == "linux":
            _tell_when_parent_ends(0)
        while self._former:
            signal.signal(*self._former.popitem())

    @contextmanager
    def during_evaluation(self) -> Iterator[None]:
        """Around an evaluation that is left as soon as any rank is asked to stop: the first signal is answered so."""
        self._is_evaluating = True
        try:
            yield
        finally:
            self._is_evaluating = False

    def window_done(self) -> None:
        """Take the time of a window, for what is said of how long the next one takes."""
        now = time.monotonic()
        self._window_at, self._window_seconds = now, now - self._window_at

    def is_asked_of_any(self, ranks: Ranks) -> bool:
        """Whether any rank was asked to stop. A collective."""
        return any(asked for (asked,) in ranks.gather([int(self.is_asked())]))

    def is_asked(self) -> bool:
        """Whether to stop; once it is True it stays so. Any thread may ask."""
        if not self._asked_by and self._deadline is not None and time.monotonic() >= self._deadline:
            self._asked_by = _TIME_OVER
        return self._asked_by != 0

    def agreed(self, ranks: Ranks) -> Stopped | None:
        """What ends the run early, if any rank was asked to stop; else signals act again as before. A collective."""
        self.is_asked()
        reasons = [reason for (reason,) in ranks.gather([self._asked_by]) if reason]
        if not reasons:
            self.__exit__()
            return None
        return Stopped(f"stopped by {', '.join(dict.fromkeys(map(self._name, reasons)))}")

    def _name(self, reason: int) -> str:
        if reason == _TIME_OVER:
            return "`max_minutes`"
        return "the end of its launcher" if reason == _LAUNCHER_ENDED else signal.Signals(reason).name

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self._asked_by <= 0:  # the time limit is no signal
            self._asked_by, self._asked_at = number, time.monotonic()
            self._answer(number)
        elif time.monotonic() - self._asked_at > _SAME_REQUEST_SECONDS:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _answer(self, number: int) -> None:
        """A line at once, of rank 0; written past Python's files, in which the signal may have come."""
        if os.environ.get("RANK", "0") != "0":
            return
        about = f", in about {math.ceil(self._window_seconds)} s" if self._window_seconds else ""
        what, then = f"stopping after {self._after}{about}; {self._then}", "goes on from there"
        if self._is_evaluating:
            what, then = f"leaving the evaluation; {self._then}", "goes on with it from its start"
        line = (
            f"\n{signal.Signals(number).name}: {what}, and the same command {then} (a second signal ends it at once, "
            "unsaved)\n"
        )
        with suppress(OSError):
            os.write(2, line.encode())

    def _on_launcher_ended(self, *_: object) -> None:
        self._asked_by = self._asked_by or _LAUNCHER_ENDED


def _launcher_signal() -> int:
    return signal.SIGRTMIN  # one that nobody sends


def _tell_when_parent_ends(number: int) -> None:
    """Have the kernel send this process a signal when its parent ends; 0: none."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
