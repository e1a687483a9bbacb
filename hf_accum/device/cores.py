"""How many cores a process has for its threads: those it may use, and those that others leave free."""

import os
import time
from contextlib import suppress
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_STAT = Path("/proc/stat")
_SAMPLE_SECONDS = 0.3
_OWN_LOAD = 1.0  # of this process, which has been starting
_LITTLE = 0.5  # of a core, that others use: of what ended just now, say


def check_cores(num_threads: int, num_processes: int) -> str | None:
    """What is to be said where so many threads, in each of so many processes here, have fewer cores than they are.

    They wait for each other then: a step can take many times as long.
    """
    allowed, free = allowed_cores(), free_cores()
    needed = num_threads * num_processes
    if free >= (needed if allowed < needed else needed - _LITTLE):
        return None
    threads = "1 thread" if needed == 1 else f"{needed} threads"
    of_each = f" ({num_threads} in each of {num_processes} processes)" if num_processes > 1 else ""
    cores = os.cpu_count()
    why = (
        f"may use {allowed:.3g} of {cores} cores"
        if allowed < needed
        else f"{max(free, 0.0):.1f} of {cores} cores are free, as others use them"
    )
    fewer = max(1, int(free) // num_processes)
    advice = f"; OMP_NUM_THREADS={fewer} before the command sets fewer" if fewer < num_threads else ""
    return f"slow: {threads}{of_each} to compute with, and {why}; it can take many times as long{advice}"


def allowed_cores(cgroup: Path = _CGROUP) -> float:
    """Those that this process may use: by its affinity, and by the quota of its container, if it has one."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = float(len(affinity(0)) if affinity is not None else os.cpu_count() or 1)
    return min(cores, _quota(cgroup) or cores)


def free_cores() -> float:
    """Those of them that no other process used within the last minute, and uses now; of the whole machine, the load
    counts. One that has ended since, as the training before an evaluation, takes nothing from this one.
    """
    load, own = 0.0, max(_OWN_LOAD, time.process_time() / 60)  # of one that has computed: a run of another seed
    with suppress(OSError, AttributeError):  # not on Windows
        load = max(0.0, os.getloadavg()[0] - own)
    if load > _LITTLE and (now := _used_now()) is not None:
        load = min(load, now)
    return min(allowed_cores(), (os.cpu_count() or 1) - load)


def _used_now(stat: Path = _STAT) -> float | None:
    """As many cores as other processes keep busy for a moment; None where that is not told, as but on Linux."""
    with suppress(OSError, ValueError, IndexError):
        tick = os.sysconf("SC_CLK_TCK")
        began, busy, own = time.monotonic(), _busy_ticks(stat), time.process_time()
        time.sleep(_SAMPLE_SECONDS)
        seconds = (_busy_ticks(stat) - busy) / tick - (time.process_time() - own)
        return max(0.0, seconds / (time.monotonic() - began))
    return None


def _busy_ticks(stat: Path) -> int:
    """Of all cores since the machine started: user, nice, system, and what interrupts and other machines took."""
    user, nice, system, _, _, irq, softirq, steal, *_ = stat.read_text().split("\n", 1)[0].split()[1:]
    return sum(map(int, (user, nice, system, irq, softirq, steal)))


def _quota(cgroup: Path) -> float | None:
    """Cores by the files of cgroup version 2, or 1."""
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (cgroup / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError, ZeroDivisionError):
        of_version_1 = [int((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period")]
        return None if of_version_1[0] < 0 else of_version_1[0] / of_version_1[1]
    return None
