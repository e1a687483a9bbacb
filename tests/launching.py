"""Starting scripts and recipes as a user does: `accelerate launch`, in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def launch(
    *arguments: str, num_processes: int = 1, cwd: Path = ROOT, timeout: float = 240, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`accelerate launch` on one CPU process, or on several over gloo; the output as text, checked by the caller."""
    how = ["--multi_gpu"] if num_processes > 1 else []
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", *how),
        *("--num_processes", str(num_processes), "--num_machines", "1", "--mixed_precision", "no"),
        *("--dynamo_backend", "no", "--main_process_port", "0", *arguments),
    ]
    return run(command, cwd=cwd, timeout=timeout, **environment)


def run(
    command: list[str], *, cwd: Path = ROOT, timeout: float = 240, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A command with its output as text."""
    return subprocess.run(
        command,
        cwd=cwd,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
            "OMP_NUM_THREADS": "1",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
