"""A rank that has failed ends with the status of its error, whatever its threads still do."""

import subprocess
import sys

import pytest

SCRIPT = """
import atexit, sys
from hf_accum.config import run
from hf_accum.errors import Stopped

class Kept:
    def __del__(self):
        print("taken down")

kept = Kept()

def work():
    atexit.register(print, "others' work at exit")  # as trackers do
    {work}

run(work)
"""


@pytest.mark.parametrize(
    ("work", "status"),
    [
        ("print('done')", 0),
        ("1 / 0", 1),
        ("int('no number')", 2),
        ("sys.exit(7)", 7),
        ("sys.exit('a text')", 1),
        ("raise Stopped('by a test')", 75),
        ("raise KeyboardInterrupt", 130),
    ],
)
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_rank_of_several_that_fails_is_not_taken_down_but_ends(num_ranks: int, work: str, status: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(work=work)],
        env={"WORLD_SIZE": str(num_ranks), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (-2 if (status, num_ranks) == (130, 1) else status), done.stderr
    assert "others' work at exit" in done.stdout
    assert ("taken down" in done.stdout) == (num_ranks == 1 or status == 0)
    assert ("ZeroDivisionError" in done.stderr) == (status == 1 and "/" in work)
