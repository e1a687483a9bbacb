"""Tests that need a CUDA device, which are skipped without one, and the report of what they found on it.

They want the device for themselves: `pytest tests/gpu` runs them in one process, and no other way runs them at all.
"""

import gc
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import torch
from gpu_report import Report

GPU = torch.device("cuda", 0)
REPORT = pytest.StashKey[Report]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--gpu_report",
        metavar="FILE",
        default="gpu-report.json",
        help="where tests/gpu writes what it found on the device (default: %(default)s)",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Where tests/gpu is asked for by its path: no second process beside it on the device."""
    config.option.numprocesses = 0


def pytest_configure(config: pytest.Config) -> None:
    config.stash[REPORT] = Report()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "gpu" in getattr(item, "fixturenames", ()):
            # What libraries say on a device is to be read, and is no failure of these tests.
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note how each test ended."""
    report = yield
    if report.when == "call" or report.outcome != "passed":
        why = [line[1:].strip() for line in report.longreprtext.splitlines() if line.startswith("E ")]
        item.config.stash[REPORT].ended(report.nodeid, report.outcome, report.duration, why[0] if why else "")
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The table, and the file."""
    report = config.stash[REPORT]
    if not report.tables or not torch.cuda.is_available():
        return
    path = Path(str(config.getoption("gpu_report", "gpu-report.json")))
    report.write(path, GPU)
    terminalreporter.section("what was found on the GPU")
    for line in report.lines(GPU):
        terminalreporter.line(line)
    terminalreporter.line(f"written to {path}")


@pytest.fixture
def gpu(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The device, with nothing on it before and after."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if hasattr(request.config, "workerinput"):
        pytest.skip("wants the GPU for itself: pytest tests/gpu")
    num_wanted = 2 if request.node.get_closest_marker("two_gpus") else 1
    if torch.cuda.device_count() < num_wanted:
        pytest.skip(f"{num_wanted} CUDA devices are needed, {torch.cuda.device_count()} there")
    _clean()
    yield GPU
    _clean()


def _clean() -> None:
    gc.collect()
    clear_workspaces = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
    torch.cuda.synchronize(GPU)
    if clear_workspaces is not None:
        clear_workspaces()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1.0, GPU)
    torch.cuda.reset_peak_memory_stats(GPU)


@pytest.fixture
def findings(request: pytest.FixtureRequest) -> Report:
    """Where a test puts its figures."""
    return request.config.stash[REPORT]
