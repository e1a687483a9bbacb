"""How much memory a run may use, and how much work really took."""

import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from launching import run
from torch import nn

from hf_accum.device import memory as budget
from hf_accum.device.memory import ProcessMemory, VirtualMemory, open_memory

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc; RLIMIT_DATA counts tensors on Linux only")


def nothing() -> None:
    pass


# A device that does not exist


def test_the_peak_of_a_virtual_device_is_counted_to_the_byte() -> None:
    def work() -> None:
        a = torch.zeros(1000)  # 4000
        b = a + 1  # 8000
        del a  # 4000
        c = b.double()  # 12000: the peak
        del b
        d = c[:10].clone()  # 8080
        del c, d
        torch.zeros(11_999, dtype=torch.uint8)

    memory = VirtualMemory(10**6)
    assert (memory.limit_bytes, memory.is_exact) == (10**6, True)
    assert memory.measure(work, []) == 12_000
    held = [torch.zeros(5), torch.zeros(3, dtype=torch.float64)]
    assert memory.used_bytes(held) == 44
    assert memory.measure(work, held) == 12_044
    assert memory.measure(work, [*held, held[0].view(5, 1), held[1][:1]]) == 12_044  # memory, not views of it
    assert VirtualMemory(12_000).measure(work, []) == 12_000
    assert VirtualMemory(11_999).measure(work, []) is None
    assert VirtualMemory(12_044).measure(work, held) == 12_044
    assert VirtualMemory(12_043).measure(work, held) is None
    assert memory.measure(nothing, held) == 44


def test_a_training_step_of_a_virtual_device_is_counted_by_hand() -> None:
    layer = nn.Linear(30, 20, bias=False)
    inputs = torch.zeros(7, 30)

    def work() -> None:
        layer(inputs).sum().backward()

    weight, output = 30 * 20 * 4, 7 * 20 * 4
    held = [*layer.parameters(), inputs]
    # In the backward: the output is needed no more, its gradient is that of the sum, expanded.
    measured = VirtualMemory(10**6).measure(work, held)
    assert measured is not None
    assert weight + 7 * 30 * 4 + output < measured <= 2 * weight + 7 * 30 * 4 + 2 * output + 8
    layer.weight.grad = None
    assert VirtualMemory(measured).measure(work, held) == measured
    layer.weight.grad = None
    assert VirtualMemory(measured - 1).measure(work, held) is None


def test_work_stops_where_it_goes_over_the_budget_and_its_tensors_are_gone() -> None:
    reached: list[str] = []

    def work() -> None:
        first = torch.zeros(100)
        reached.append("first")
        second = torch.zeros(200)
        reached.append("second")
        del first, second

    memory = VirtualMemory(1000)
    assert memory.measure(work, []) is None
    assert reached == ["first"]
    assert memory.measure(lambda: None, []) == 0
    assert memory.measure(lambda: reached.append(str(torch.zeros(250).shape)), []) == 1000


def test_a_budget_below_what_is_held_fits_nothing_and_runs_nothing() -> None:
    ran: list[int] = []
    held = [torch.zeros(10)]
    assert VirtualMemory(39).measure(lambda: ran.append(1), held) is None
    assert ran == []
    assert VirtualMemory(40).measure(lambda: ran.append(1), held) == 40
    assert ran == [1]


def failing(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        torch.zeros(3)
        raise error

    return work


@pytest.mark.parametrize("memory", [VirtualMemory(10**9), pytest.param(ProcessMemory, marks=linux)])
@pytest.mark.parametrize(
    "error",
    [
        *(ValueError("out of memory"), RuntimeError("shapes differ"), KeyboardInterrupt()),
        RuntimeError("an illegal memory access was encountered: out of memory"),
    ],
)
def test_other_errors_are_raised(memory: VirtualMemory | type[ProcessMemory], error: BaseException) -> None:
    device = memory if isinstance(memory, VirtualMemory) else memory()
    with pytest.raises(type(error)) as caught:
        device.measure(failing(error), [])
    assert caught.value is error


@pytest.mark.parametrize("memory", [VirtualMemory(10**9), pytest.param(ProcessMemory, marks=linux)])
@pytest.mark.parametrize("message", ["std::bad_alloc", "could not create a primitive"])
def test_an_error_that_may_be_of_memory_is_a_size_that_does_not_fit(
    memory: VirtualMemory | type[ProcessMemory], message: str
) -> None:
    device = memory if isinstance(memory, VirtualMemory) else memory()
    assert device.measure(failing(RuntimeError(message)), []) is None


def test_a_budget_on_a_cpu_is_a_virtual_device() -> None:
    memory = open_memory(torch.device("cpu"), "1.5MiB")
    assert isinstance(memory, VirtualMemory)
    assert memory.limit_bytes == 3 * 2**19
    memory.expect(10**12)
    assert memory.measure(nothing, []) == 0
    with pytest.raises(ValueError, match="has to be bytes"):
        open_memory(torch.device("cpu"), "some")


# This process


@linux
def test_auto_on_a_cpu_is_this_process() -> None:
    memory = open_memory(torch.device("cpu"), "auto")
    assert isinstance(memory, ProcessMemory)
    assert not memory.is_exact
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory.used_bytes([]) < memory.limit_bytes < physical
    measured = memory.measure(nothing, [])
    assert measured is not None
    assert measured == pytest.approx(memory.used_bytes([]), rel=0.02)


@linux
def test_a_peak_that_has_gone_by_is_not_counted_again() -> None:
    def work() -> None:
        torch.ones(50 * 2**18)

    memory = ProcessMemory()
    first = memory.measure(work, [])
    second = memory.measure(nothing, [])
    assert first is not None
    assert second is not None
    assert 45 * 2**20 < first - second < 60 * 2**20


@linux
def test_a_limit_of_the_process_is_kept_to_and_tensors_are_measured() -> None:
    code = """
import resource, torch
from hf_accum.device.memory import ProcessMemory, _status
torch.set_num_threads(1)
resource.setrlimit(resource.RLIMIT_DATA, (2**30 + _status("VmData"), 2**30 + _status("VmData")))
memory = ProcessMemory()
before = memory.used_bytes([])
assert before + 0.8 * 2**30 < memory.limit_bytes < before + 2**30, (before, memory.limit_bytes)
base = memory.measure(lambda: None, [])
size = 300 * 10**6

def work():
    torch.ones(size, dtype=torch.uint8)

for _ in range(3):
    measured = memory.measure(work, [])
    assert abs(measured - base - size) <= 0.03 * size, (base, measured)

def too_large():
    kept = [torch.ones(size, dtype=torch.uint8) for _ in range(10)]

for _ in range(3):
    assert memory.measure(too_large, []) is None
    assert memory.used_bytes([]) < before + 20 * 2**20  # all given back
assert abs(memory.measure(work, []) - base - size) <= 0.03 * size

# What is over the limit, although the system gives it, is measured.
over = memory.limit_bytes - before + 20 * 2**20
assert over < 2**30
assert memory.measure(lambda: torch.ones(over, dtype=torch.uint8) is None, []) > memory.limit_bytes
print("all done", measured, base)
"""
    result = run([sys.executable, "-c", code])
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("all done")


@linux
@pytest.mark.parametrize("name", ["RLIMIT_DATA", "RLIMIT_AS"])
def test_each_limit_of_a_process_counts(name: str) -> None:
    code = f"""
import resource, torch
from hf_accum.device.memory import ProcessMemory, _headrooms, _status
used = _status({"VmData" if name == "RLIMIT_DATA" else "VmSize"!r})
resource.setrlimit(resource.{name}, (used + 2**29, used + 2**29))
room = _headrooms()["{name}"]
assert abs(2**29 - room) < 2**22, room  # trimming, and reading this
memory = ProcessMemory()
memory.expect(0)
memory.expect(2**40)
assert abs(_status("VmRSS") + 2**29 - 32 * 2**20 - memory.limit_bytes) < 2**23
assert memory.measure(lambda: torch.ones(2**29 + 2**26, dtype=torch.uint8) is None, []) is None
"""
    result = run([sys.executable, "-c", code])
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("num_ranks", [1, 2, 8])
def test_ranks_of_one_machine_share_it(monkeypatch: pytest.MonkeyPatch, num_ranks: int) -> None:
    """Their own limits (RLIMIT) are each rank's alone."""
    monkeypatch.setattr(budget, "_available", lambda: 1000)
    monkeypatch.setattr(budget, "_control_groups", lambda: [("/a", 800), ("/b", 400)])
    monkeypatch.setattr(budget, "_status", lambda name: {"VmData": 10, "VmSize": 20}[name])
    limits = {resource.RLIMIT_DATA: 300, resource.RLIMIT_AS: resource.RLIM_INFINITY}
    monkeypatch.setattr(budget.resource, "getrlimit", lambda which: (limits[which], resource.RLIM_INFINITY))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(num_ranks))
    assert budget._headrooms() == {
        "machine": 1000 // num_ranks,
        "control group /a": 800 // num_ranks,
        "control group /b": 400 // num_ranks,
        "RLIMIT_DATA": 290,
    }


def test_a_process_alone_has_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(budget, "_available", lambda: 1000)
    assert budget._headrooms()["machine"] == 1000


@linux
def test_part_of_the_room_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    for room, reserve in ((2**30, 32 * 2**20), (100 * 2**30, 2 * 2**30)):
        monkeypatch.setattr(budget, "_headrooms", lambda room=room: {"machine": room, "other": room + 1})
        monkeypatch.setattr(budget, "_status", lambda name: 5000)
        assert ProcessMemory().limit_bytes == 5000 + room - reserve


# Control groups


class Tree:
    """/proc and /sys under another root."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        monkeypatch.setattr(budget, "Path", lambda path: root / str(path).lstrip("/"))

    def write(self, path: str, text: str | int) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def group(self, path: str, limit: int | str, used: int, stat: str = "anon 5\ninactive_file 0") -> None:
        is_old = path.startswith("memory")
        folder = f"sys/fs/cgroup/{path}".rstrip("/")
        self.write(f"{folder}/{'memory.limit_in_bytes' if is_old else 'memory.max'}", limit)
        self.write(f"{folder}/{'memory.usage_in_bytes' if is_old else 'memory.current'}", used)
        self.write(f"{folder}/memory.stat", stat)

    def found(self) -> dict[str, int]:
        root = str(self.root / "sys/fs/cgroup")
        rooms = list(budget._control_groups())
        assert len(dict(rooms)) == len(rooms)
        return {folder.removeprefix(root).lstrip("/"): room for folder, room in rooms}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    return Tree(tmp_path, monkeypatch)


def test_control_groups_of_version_2_and_those_around_them(tree: Tree) -> None:
    tree.write("proc/self/cgroup", "0::/user.slice/run-7.scope")
    tree.group("user.slice/run-7.scope", 1000, 300, "anon 300\nfile 90\ninactive_file 50\nactive_file 40")
    tree.group("user.slice", "max", 5000)
    tree.group("user.slice/other.scope", 1, 1)
    assert tree.found() == {"user.slice/run-7.scope": 750}
    tree.group("user.slice", 6000, 5000)
    assert tree.found() == {"user.slice/run-7.scope": 750, "user.slice": 1000}


def test_in_a_container_the_limits_stand_at_the_root(tree: Tree) -> None:
    tree.write("proc/self/cgroup", "0::/docker/0123abcd")
    tree.group("", 4000, 1000)
    assert tree.found() == {"": 3000}
    tree.write("proc/self/cgroup", "0::/")
    assert tree.found() == {"": 3000}


def test_control_groups_of_version_1(tree: Tree) -> None:
    lines = ["12:cpu,cpuacct:/job", "9:name=systemd:/", "4:memory:/batch/job", "0::/"]
    tree.write("proc/self/cgroup", "\n".join(lines))
    tree.group("memory/batch/job", 2000, 500, "cache 100\nrss 400\ninactive_file 30")
    tree.group("memory/batch", 9223372036854771712, 700)
    tree.group("job", 1, 1)  # of the other controllers
    assert tree.found() == {"memory/batch/job": 1530, "memory/batch": 9223372036854771712 - 700}


def test_a_controller_together_with_others_counts(tree: Tree) -> None:
    tree.write("proc/self/cgroup", "4:hugetlb,memory:/a:b")
    tree.group("memory/a:b", 2000, 500)
    assert tree.found() == {"memory/a:b": 1500}


def test_files_that_cannot_be_read_are_no_limit(tree: Tree) -> None:
    assert tree.found() == {}  # no /proc/self/cgroup
    tree.write("proc/self/cgroup", "0::/a/b\n3:cpuset:/")
    assert tree.found() == {}
    tree.write("sys/fs/cgroup/a/b/memory.max", "100")
    assert tree.found() == {}
    tree.group("a/b", 100, 10, "not what it should be")
    tree.group("", 100, 10, "anon 3")
    assert tree.found() == {"": 90}


def test_a_control_group_limits_the_process(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.write("proc/self/cgroup", "0::/a")
    tree.group("a", 3 * 2**30, 2**30)
    tree.write("proc/meminfo", "MemTotal: 99 kB\nMemAvailable:   8388608 kB")
    tree.write("proc/self/status", "Name:\tpython\nVmSize:\t 9 kB\nVmRSS:\t 1024 kB\nVmData:\t 3 kB")
    monkeypatch.setattr(budget.resource, "getrlimit", lambda which: (resource.RLIM_INFINITY,) * 2)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert set(budget._headrooms().values()) == {8 * 2**30, 2 * 2**30}
    assert ProcessMemory().limit_bytes == 2**20 + 2 * 2**30 - round(2 * 2**30 * 0.02)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert ProcessMemory().limit_bytes == 2**20 + 2**29 - 32 * 2**20
