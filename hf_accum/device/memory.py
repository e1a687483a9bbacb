"""How much memory a run may use, and how much some work really took: accelerators, this process, a virtual device."""

import os
import resource
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from hf_accum.byte_sizes import parse_bytes
from hf_accum.device.accelerator import available_bytes, check_budget
from hf_accum.device.live_bytes import LiveBytes
from hf_accum.device.malloc import return_freed_memory
from hf_accum.device.out_of_memory import Failure, classify, empty_cache, release

# What is left free on top of what was measured, for what differs from step to step. On a CPU a process grew by 36 MiB
# over 20 steps after its tuning (tests/bench/README.md). Of GPUs, whose allocators keep fragments between blocks of
# uneven size, nothing is measured yet: twice as much.
_RESERVES = {"cpu": (0.02, 32 * 2**20), "accelerator": (0.04, 64 * 2**20)}
_GROWTH_OF_MALLOC = 2.0


class DeviceMemory(Protocol):
    """A device's memory, in bytes of its own counting: `limit_bytes` and the peaks of `measure` are comparable."""

    name: str
    limit_bytes: int
    is_exact: bool
    """Whether it counts as a trace does, to the byte."""

    def expect(self, num_bytes: int) -> None:
        """Told the most that a run could use, before the first measurement."""
        ...

    def look_again(self) -> None:
        """Told that the device was used once: what that took for good is free no more."""
        ...

    def used_bytes(self, held: Iterable[Tensor]) -> int:
        """What is in use now; `held` are the tensors that the work finds there."""
        ...

    def measure(self, work: Callable[[], None], held: Iterable[Tensor]) -> int | None:
        """Run `work`; its peak (which may be over the limit), or None where it ran out of memory.

        Any other error of the work is raised.
        """
        ...


def open_memory(device: torch.device, budget: str | int) -> DeviceMemory:
    """The memory of the run's device. A number of bytes on a CPU is a virtual device, which counts tensors only.

    Raises:
        UserError: for a budget that is more than the device has.
    """
    if device.type != "cpu":
        return AcceleratorMemory(device, None if budget == "auto" else parse_bytes(budget))
    return ProcessMemory() if budget == "auto" else VirtualMemory(parse_bytes(budget))


def device_name(device: torch.device) -> str:
    """What kind of device it is: two of one kind are equally fast."""
    name = None if device.type == "cpu" else getattr(torch.get_device_module(device), "get_device_name", None)
    return device.type if name is None else name(device)  # MPS has none


class VirtualMemory:
    """A device of so many bytes that does not exist: the live bytes of tensors are counted, and limited."""

    def __init__(self, budget_bytes: int) -> None:
        self.name = "virtual device"
        self.limit_bytes = budget_bytes
        self.is_exact = True

    def expect(self, num_bytes: int) -> None:
        """Nothing to prepare."""

    def look_again(self) -> None:
        """Nothing is lost."""

    def used_bytes(self, held: Iterable[Tensor]) -> int:
        """The bytes of the tensors held."""
        return LiveBytes(held=held).current_bytes

    def measure(self, work: Callable[[], None], held: Iterable[Tensor]) -> int | None:
        """Run and count; None where an operation went over the budget."""
        live = LiveBytes(self.limit_bytes, held)
        if live.current_bytes > self.limit_bytes:
            return None

        def counted() -> None:
            with live:
                work()

        return live.peak_bytes if _fits(counted, torch.device("cpu")) else None


class AcceleratorMemory:
    """A GPU (CUDA, ROCm, XPU, MPS) through `torch.accelerator`: what its caching allocator holds.

    A reserve of what the run may use is left free. The process can take no more than that, where the device can be
    told: a little more raises out of memory, and does not take what others have.
    """

    def __init__(self, device: torch.device, budget_bytes: int | None) -> None:
        self.device = device
        self.name = str(device)
        self.is_exact = False
        available, total = available_bytes(device)
        if budget_bytes is not None:
            check_budget(device, budget_bytes, available, total)
        most = available if budget_bytes is None else budget_bytes
        self._reserve = _reserve("accelerator", most)
        self.limit_bytes = most - self._reserve
        limit = getattr(torch.get_device_module(device), "set_per_process_memory_fraction", None)
        if limit is not None:
            limit(most / total)

    def expect(self, num_bytes: int) -> None:
        """Nothing to prepare."""

    def look_again(self) -> None:
        """Kernels that were loaded, and libraries' handles, have their memory beside the allocator."""
        available, _ = available_bytes(self.device)
        self.limit_bytes = min(self.limit_bytes, available - self._reserve)

    def used_bytes(self, held: Iterable[Tensor]) -> int:
        """Reserved by the allocator."""
        return torch.accelerator.memory.memory_reserved(self.device)

    def measure(self, work: Callable[[], None], held: Iterable[Tensor]) -> int | None:
        """Run and read the allocator's peak; allocations that had to be tried again count as out of memory."""
        empty_cache(self.device)
        torch.accelerator.memory.reset_peak_memory_stats(self.device)
        retries = self._num_retries()

        def synchronised() -> None:
            work()
            torch.accelerator.synchronize(self.device)

        fits = _fits(synchronised, self.device)
        peak = torch.accelerator.memory.max_memory_reserved(self.device)
        return peak if fits and self._num_retries() == retries else None

    def _num_retries(self) -> int:
        return torch.accelerator.memory.memory_stats(self.device).get("num_alloc_retries", 0)


class ProcessMemory:
    """The memory of this process, for a run on a CPU: its resident bytes, and what limits them.

    The limit is the least of what control group, RLIMIT_DATA, RLIMIT_AS and the machine still allow.
    """

    def __init__(self) -> None:
        self.name = "cpu"
        self.is_exact = False
        empty_cache("cpu")
        headroom = min(_headrooms().values())
        self.limit_bytes = _status("VmRSS") + headroom - _reserve("cpu", headroom)

    def expect(self, num_bytes: int) -> None:
        """Where that comes near the limit, have freed memory given back: only there, for it costs time."""
        if num_bytes * _GROWTH_OF_MALLOC > self.limit_bytes - _status("VmRSS"):
            return_freed_memory()

    def look_again(self) -> None:
        """What was loaded is resident, and counts."""

    def used_bytes(self, held: Iterable[Tensor]) -> int:
        """Resident now."""
        empty_cache("cpu")
        return _status("VmRSS")

    def measure(self, work: Callable[[], None], held: Iterable[Tensor]) -> int | None:
        """Run and read the peak of resident bytes."""
        empty_cache("cpu")
        _reset_peak()
        fits = _fits(work, torch.device("cpu"))
        peak = _peak_resident()
        empty_cache("cpu")
        return peak if fits else None


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory in use so far: allocated on an accelerator, resident in this process on a CPU."""
    if device.type == "cpu":
        return _max_resident()
    try:
        return int(torch.accelerator.memory.max_memory_allocated(device))
    except RuntimeError:  # of MPS before mid-2026, which knows what it holds now, its cache with it
        held = getattr(torch.get_device_module(device), "driver_allocated_memory", None)
        return 0 if held is None else int(held())


def _reserve(kind: str, num_bytes: int) -> int:
    share, least = _RESERVES[kind]
    return max(least, round(num_bytes * share))


def _fits(work: Callable[[], None], device: torch.device) -> bool:
    try:
        work()
    except Exception as error:
        if classify(error) is Failure.OTHER:
            raise
        release(error, device)
        return False
    return True


def _headrooms() -> dict[str, int]:
    """Bytes that this process may still take, by what limits them."""
    # The ranks on this machine share it, and its control groups.
    num_local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    rooms = {"machine": _available() // num_local_ranks}
    rooms |= {f"control group {folder}": room // num_local_ranks for folder, room in _control_groups()}
    limits = {"RLIMIT_DATA": (resource.RLIMIT_DATA, "VmData"), "RLIMIT_AS": (resource.RLIMIT_AS, "VmSize")}
    for name, (limit, used) in limits.items():
        most, _ = resource.getrlimit(limit)
        if most != resource.RLIM_INFINITY:
            rooms[name] = most - _status(used)
    return rooms


def _control_groups() -> Iterable[tuple[str, int]]:
    """Limits of the control groups of this process (version 2 and 1), and of those around them."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, limit, used = Path("/sys/fs/cgroup"), "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root, limit, used = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        own = root / path.lstrip("/")
        # In a container the path may be that of the host, and the limits stand at the root.
        for folder in dict.fromkeys([own, *own.parents, root]):
            if not folder.is_relative_to(root):
                break
            try:
                most, now = (folder / limit).read_text().strip(), int((folder / used).read_text())
                caches = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
                # Files that are only cached give way.
                room = None if most == "max" else int(most) - now + int(caches.get("inactive_file", 0))
            except (OSError, ValueError):
                continue
            if room is not None:
                yield str(folder), room


def _available() -> int:
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        import psutil

        return psutil.virtual_memory().available


def _status(name: str) -> int:
    """A figure of this process in bytes, as /proc/self/status has it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        import psutil

        memory = psutil.Process().memory_info()
        return memory.rss if name == "VmRSS" else memory.vms
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _reset_peak() -> None:
    with suppress(OSError):  # then the peak is that of the whole process so far, which is no less
        Path("/proc/self/clear_refs").write_text("5")


def _peak_resident() -> int:
    if Path("/proc/self/status").exists():
        return _status("VmHWM")
    return _max_resident()


def _max_resident() -> int:
    """The most that this process was resident with since it began."""
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024
