"""The cores of a process, and whether its threads have one each."""

import os
from pathlib import Path

import pytest

from hf_accum.device.cores import _used_now, allowed_cores, check_cores, free_cores


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Of 8 cores, all free."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.5, 0.0, 0.0))
    monkeypatch.setattr("hf_accum.device.cores._quota", lambda _: None)
    monkeypatch.setattr("time.process_time", lambda: 9.0)
    monkeypatch.setattr("hf_accum.device.cores._used_now", lambda: 30.0)
    return monkeypatch


def test_threads_with_a_core_each_need_no_word(machine: pytest.MonkeyPatch) -> None:
    assert check_cores(8, 1) is None
    assert check_cores(4, 2) is None
    machine.setattr(os, "getloadavg", lambda: (4.9, 0.0, 0.0))
    assert check_cores(4, 1) is None  # 3.9 are used by others


def test_what_this_process_computed_itself_is_no_load_of_others(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(os, "getloadavg", lambda: (8.0, 0.0, 0.0))
    assert check_cores(8, 1) is not None
    machine.setattr("time.process_time", lambda: 8 * 60.0)  # the run of a seed before
    assert check_cores(8, 1) is None
    machine.setattr(os, "getloadavg", lambda: (1.4, 0.0, 0.0))
    machine.setattr("time.process_time", lambda: 9.0)
    assert check_cores(8, 1) is None  # of a command that ended just now


def test_what_has_ended_since_is_no_load(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(os, "getloadavg", lambda: (7.5, 0.0, 0.0))
    machine.setattr("hf_accum.device.cores._used_now", lambda: 0.2)
    assert check_cores(8, 1) is None
    machine.setattr("hf_accum.device.cores._used_now", lambda: 3.0)
    assert "and 5.0 of 8 cores are free, as others use them" in (check_cores(8, 1) or "")
    machine.setattr("hf_accum.device.cores._used_now", lambda: None)  # not told
    assert "and 1.5 of 8 cores are free" in (check_cores(8, 1) or "")


def test_what_others_use_now_is_what_is_busy_but_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat, ticks = tmp_path / "stat", os.sysconf("SC_CLK_TCK")
    assert _used_now(stat) is None
    stat.write_text("cpu  100 20 30 9999 50 1 2 3 7 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
    clock, own = iter((10.0, 12.0)), iter((5.0, 6.0))

    def sleep(seconds: float) -> None:  # 3 s of all, of which this process has 1, within 2 s
        stat.write_text(f"cpu  {100 + 2 * ticks} 20 {30 + ticks} 12999 999 1 2 3 7 0\n")

    monkeypatch.setattr("time.sleep", sleep)
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    monkeypatch.setattr("time.process_time", lambda: next(own))
    assert _used_now(stat) == pytest.approx(1.0)


def test_a_load_of_others_is_said_with_the_way_out(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(os, "getloadavg", lambda: (6.5, 0.0, 0.0))
    said = check_cores(8, 1)
    assert said is not None
    assert said.startswith("slow: 8 threads to compute with, and 2.5 of 8 cores are free, as others use them; ")
    assert said.endswith("; OMP_NUM_THREADS=2 before the command sets fewer")
    machine.setattr(os, "getloadavg", lambda: (30.0, 0.0, 0.0))
    assert "0.0 of 8 cores are free" in (check_cores(8, 1) or "")
    assert "OMP_NUM_THREADS=1 " in (check_cores(8, 1) or "")
    assert (check_cores(1, 1) or "").startswith("slow: 1 thread to compute with, and 0.0 of 8 cores")
    assert "OMP_NUM_THREADS" not in (check_cores(1, 1) or "OMP_NUM_THREADS")


def test_fewer_cores_than_threads_are_said(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(os, "sched_getaffinity", lambda _: {0, 3}, raising=False)
    assert free_cores() == 2
    assert "8 threads to compute with, and may use 2 of 8 cores; " in (check_cores(8, 1) or "")
    said = check_cores(2, 2) or ""
    assert said.startswith("slow: 4 threads (2 in each of 2 processes) to compute with, and may use 2 of 8 cores; ")
    assert "OMP_NUM_THREADS=1 " in said


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_a_container_s_quota_counts(
    files: dict[str, str], cores: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert allowed_cores(tmp_path) == (8 if cores is None else cores)
