"""Starting scripts and recipes as a user does: `accelerate launch`, in processes of their own."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]


def launch(
    *arguments: str, num_processes: int = 1, cwd: Path = ROOT, timeout: float = 240, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`accelerate launch` on one CPU process, or on several over gloo; the output as text, checked by the caller."""
    return run(_command(*arguments, num_processes=num_processes), cwd=cwd, timeout=timeout, **environment)


@contextmanager
def launched(
    *arguments: str, until: str, num_processes: int, timeout: float = 240, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], Callable[[], str]]]:
    """The same, which goes on after a line that begins with `until`: the launcher, and its output once it has ended.

    It leads a process group of its own, which is killed where something is left of it.
    """
    process = subprocess.Popen(
        _command(*arguments, num_processes=num_processes),
        cwd=ROOT,
        env=_environment(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    last_moment = threading.Timer(timeout, lambda: os.killpg(process.pid, signal.SIGKILL))
    last_moment.start()
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.strip().startswith(until):
                break
        # The end of the output is that of the last process which has it.
        yield process, lambda: "".join([*lines, process.stdout.read()])  # type: ignore[union-attr]
    finally:
        last_moment.cancel()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def _command(*arguments: str, num_processes: int) -> list[str]:
    how = ["--multi_gpu"] if num_processes > 1 else []
    return [
        *(sys.executable, "-m", "accelerate.commands.launch", *how),
        *("--num_processes", str(num_processes), "--num_machines", "1", "--mixed_precision", "no"),
        *("--dynamo_backend", "no", "--main_process_port", "0", *arguments),
    ]


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'support'}",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",  # where there are GPUs too; tests/gpu gives theirs
        **more,
    }


def run(
    command: list[str], *, cwd: Path = ROOT, timeout: float = 240, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A command with its output as text."""
    return subprocess.run(
        command,
        cwd=cwd,
        env=_environment(environment),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
