"""A request to stop: the first signal is noted, the next one counts, all ranks hear of it."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest
from thread_ranks import ThreadRanks, run_ranks

from hf_accum.distributed.ranks import OneRank
from hf_accum.run import signals as stopping
from hf_accum.run.signals import StopRequest

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(stopping, "time", clock)
    return clock


@pytest.fixture(autouse=True)
def same_handlers_afterwards() -> Iterator[None]:
    assert threading.current_thread() is threading.main_thread()
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted_and_named(number: signal.Signals) -> None:
    with StopRequest() as stop:
        assert not stop.is_asked()
        os.kill(os.getpid(), number)
        assert stop.is_asked()
        assert str(stop.agreed(OneRank())) == f"stopped by {number.name}"
        assert signal.getsignal(number) == stop._on_signal  # the next one still counts


@pytest.mark.parametrize("first", SIGNALS)
def test_signals_within_two_seconds_are_one_request_and_later_ones_act(first: signal.Signals, clock: Clock) -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), first)
        for number in SIGNALS:
            clock.seconds += 0.6
            os.kill(os.getpid(), number)
        clock.seconds += 0.3
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert str(stop.agreed(OneRank())) == f"stopped by {first.name}"


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert not stop.is_asked()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_time_is_over_after_the_minutes_since_the_start(clock: Clock) -> None:
    stop = StopRequest(1.5)
    clock.seconds += 89
    with stop:
        assert not stop.is_asked()
        clock.seconds += 1
        assert stop.is_asked()
        assert str(stop.agreed(OneRank())) == "stopped by `max_minutes`"
        # A signal then is the first one, and no second request.
        os.kill(os.getpid(), signal.SIGINT)
        assert str(stop.agreed(OneRank())) == "stopped by SIGINT"


def test_signals_act_as_before_once_all_ranks_agree_to_go_on() -> None:
    with StopRequest() as stop:
        assert stop.agreed(OneRank()) is None
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("minutes_by_rank", "expected"),
    [
        ([None, None, 1e6], "None"),
        ([None, 1e-9, None], "stopped by `max_minutes`"),
        ([1e-9] * 2, "stopped by `max_minutes`"),
    ],
)
def test_all_ranks_hear_what_any_was_asked_by(minutes_by_rank: list[float | None], expected: str) -> None:
    def work(ranks: ThreadRanks) -> str:
        with StopRequest(minutes_by_rank[ranks.index]) as stop:  # in a thread, which can set no handlers
            return str(stop.agreed(ranks))

    assert run_ranks(len(minutes_by_rank), work) == [expected] * len(minutes_by_rank)


@pytest.mark.parametrize(("rank", "says"), [(None, True), ("0", True), ("1", False)])
def test_the_first_signal_is_answered_at_once_by_one_rank(
    rank: str | None, says: bool, clock: Clock, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    with StopRequest() as stop:
        clock.seconds += 90.0
        stop.window_done()
        clock.seconds += 6.2
        stop.window_done()
        os.kill(os.getpid(), signal.SIGINT)
        said = capfd.readouterr().err
        assert (
            "SIGINT: stopping after this window, in about 7 s; the run is saved then, and the same" in said
        ) == says
        os.kill(os.getpid(), signal.SIGTERM)
        assert capfd.readouterr().err == ""
    with StopRequest() as stop:
        with stop.during_evaluation():
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_asked()
    line = (
        "SIGTERM: leaving the evaluation; the run is saved then, and the same command goes on with it from its start"
    )
    assert (line in capfd.readouterr().err) == says
    with StopRequest():
        os.kill(os.getpid(), signal.SIGTERM)
    assert ("SIGTERM: stopping after this window; the run" in capfd.readouterr().err) == says


def test_any_rank_s_request_is_known_to_all() -> None:
    def ask(ranks: ThreadRanks) -> bool:
        stop = StopRequest()
        stop._asked_by = signal.SIGTERM if ranks.index == 1 else 0
        return stop.is_asked_of_any(ranks)

    assert run_ranks(3, ask) == [True] * 3
    assert not StopRequest().is_asked_of_any(OneRank())
