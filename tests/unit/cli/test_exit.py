"""How a run ends that failed: one line, its status, its traceback where the line says."""

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_accum.cli.exit import run
from hf_accum.config.recipe import RecipeConfig
from hf_accum.errors import NotFinite, OutOfMemory, RankFailed, Stopped, UserError, first_line, shown

TOKEN = "hf_" + "aB3dE6gH9jK2mN5pQ8" * 2


def ours() -> None:
    raise UserError("notes.csv, row 7: field 'label': missing")


def ours_for_another() -> None:
    try:
        json.loads("{")
    except ValueError as error:
        raise UserError("notes.json: has to be JSON") from error


def of_a_library() -> None:
    json.loads("{")


def of_a_builtin() -> None:
    int("x")


def of_a_wrong_key() -> None:
    raise KeyError("x")


def without_message() -> None:
    raise NotImplementedError


def ended(work: Callable[[], object], config: RecipeConfig | None = None) -> int:
    with pytest.raises(SystemExit) as stopped:
        run(work, config)
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def raised(work: Callable[[], object]) -> Exception:
    try:
        work()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize("work", [ours, ours_for_another])
def test_a_user_s_mistake_is_its_message_and_leaves_nothing(
    work: Callable[[], object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(work, RecipeConfig(output_dir=str(tmp_path / "run"))) == 2
    assert capsys.readouterr().err == f"error: {raised(work)}\n"
    assert not list(tmp_path.iterdir())


def test_a_user_s_mistake_while_running_is_one_message_and_status_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work() -> None:
        raise UserError("notes.csv, row 7: field 'label': missing")

    with pytest.raises(SystemExit) as ended:
        run(work)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: notes.csv, row 7: field 'label': missing\n"


def test_a_run_that_was_stopped_ends_with_a_status_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise Stopped("stopped by SIGTERM")

    with pytest.raises(SystemExit) as ended:
        run(work)
    assert ended.value.code == os.EX_TEMPFAIL == 75
    assert capsys.readouterr().err == ""  # the log has said it


def test_memory_that_runs_out_outside_of_the_micro_batches_is_said_so(capsys: pytest.CaptureFixture[str]) -> None:
    def optimizer_step() -> None:
        raise RuntimeError("CUDA error: out of memory")

    with pytest.raises(SystemExit) as ended:
        run(optimizer_step)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(
        "error: memory ran out outside of the micro-batches, as where weights are loaded or in an optimizer step (Run"
    )

    def broken() -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(SystemExit) as ended:
        run(broken)
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith(
        "error: RuntimeError: mat1 and mat2 shapes cannot be multiplied (nothing"
    )


@pytest.mark.parametrize("kind", [UserError, RankFailed, OutOfMemory, NotFinite])
def test_the_arguments_of_a_message_are_told_as_flags(
    kind: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        raise kind("`max_length` 600: too long; `lora.rank 4` or `resume never`, as `model.train` has no `role`")

    assert ended(work) == 2
    said = "--max_length 600: too long; --lora.rank 4 or --resume never, as `model.train` has no `role`"
    assert capsys.readouterr().err == f"error: {said}\n"


def test_the_flags_of_commands_are_told_as_flags_too(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise UserError("`output` x: is there already; a smaller `max_new_tokens`")

    assert ended(work) == 2
    assert capsys.readouterr().err == "error: --output x: is there already; a smaller --max_new_tokens\n"


def test_what_other_libraries_say_of_their_arguments_is_told_as_it_is(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def work() -> None:
        raise KeyError("`max_length` is missing")

    assert ended(work, RecipeConfig(output_dir=str(tmp_path / "run"))) == 1
    assert "error: KeyError: '`max_length` is missing' (" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "make room on the disk"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/data/x"), "make room on the disk"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "what reads the output has ended"),
    ],
)
def test_a_full_disk_and_a_reader_that_has_ended_are_no_faults(
    error: Exception, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        raise error

    assert ended(work, RecipeConfig(output_dir=str(tmp_path / "run"))) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert not list(tmp_path.iterdir())  # no traceback


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_sigterm_takes_away_what_is_half_written(tmp_path: Path, num_ranks: int) -> None:
    """Of several ranks one may wait for another, in C++, where no handler runs: there it stays as it was."""
    code = """
import os, signal, sys
from pathlib import Path
from hf_accum.cli.exit import cleaning_up_at_sigterm
from hf_accum.files import fill_folder_atomically

def fill(partial):
    (partial / "weights").write_text("half")
    os.kill(os.getpid(), signal.SIGTERM)

with cleaning_up_at_sigterm():
    fill_folder_atomically(Path(sys.argv[1]), fill)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        env={"WORLD_SIZE": str(num_ranks), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    if num_ranks == 1:
        assert (done.returncode, done.stderr) == (143, "SIGTERM: ended at once\n")
        assert not list(tmp_path.iterdir())
    else:
        assert (done.returncode, done.stderr) == (-15, "")


@pytest.mark.parametrize("error", [RankFailed("rank 1 failed: x"), OutOfMemory("no example fits")])
def test_what_other_ranks_and_the_tuner_say_is_told_as_it_is(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        raise error

    assert ended(work) == 2
    assert capsys.readouterr().err == f"error: {error}\n"


@pytest.mark.parametrize("work", [of_a_library, of_a_builtin, of_a_wrong_key, without_message])
def test_anything_else_is_one_line_that_says_where_its_traceback_is(
    work: Callable[[], object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A ValueError too, if nobody raised it for a user to read."""
    assert ended(work, RecipeConfig(output_dir=str(tmp_path / "run"))) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"error: {first_line(raised(work))} (nothing that is checked for")
    assert "--debug shows it" in said
    (file,) = tmp_path.iterdir()
    assert str(file) in said
    assert file.name.startswith("run-traceback-")
    assert f"in {work.__name__}\n" in file.read_text()
    assert "Traceback (most recent call last)" in file.read_text()


def test_a_traceback_goes_elsewhere_where_there_is_no_folder_yet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(of_a_library, RecipeConfig(output_dir=str(tmp_path / "none" / "run"))) == 1
    found = re.search(r"its traceback is in (\S+),", capsys.readouterr().err)
    assert found is not None
    file = Path(found[1])
    assert "in of_a_library\n" in file.read_text()
    file.unlink()
    assert not list(tmp_path.iterdir())


def test_two_failures_keep_a_traceback_each(tmp_path: Path) -> None:
    for _ in range(2):
        ended(of_a_library, RecipeConfig(output_dir=str(tmp_path / "run")))
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(("work", "status"), [(ours, 2), (of_a_library, 1)])
def test_with_debug_the_traceback_is_shown_and_no_file_written(
    work: Callable[[], object], status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(work, RecipeConfig(output_dir=str(tmp_path / "run"), debug=True)) == status
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last)")
    assert f"in {work.__name__}\n" in said
    assert said.splitlines()[-1].startswith("error: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("debug", [False, True])
def test_no_secret_is_told(debug: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise OSError(f"https://me:password1@example.org refused {TOKEN}")

    assert ended(work, RecipeConfig(output_dir=str(tmp_path / "run"), debug=debug)) == 1
    told = capsys.readouterr().err + "".join(file.read_text() for file in tmp_path.iterdir())
    assert told.count("refused") >= 2 - debug
    assert TOKEN not in told
    assert "password1" not in told


def test_what_a_terminal_would_obey_is_told_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise UserError("field '\x1b[2J\u202e\ud800é💊':\nmissing")

    assert ended(work) == 2
    assert capsys.readouterr().err == "error: field '\\x1b[2J\\u202e\\ud800é💊':\nmissing\n"


def test_messages_of_libraries_are_told_in_a_line() -> None:
    assert first_line(ValueError("first\nsecond")) == "ValueError: first"
    assert (
        first_line(ValueError("Validation error:\n    not an int\nthird"))
        == "ValueError: Validation error: not an int"
    )
    assert first_line(ValueError("\nlate")) == "ValueError: late"
    assert first_line(ValueError()) == "ValueError:"
    assert len(first_line(ValueError("x" * 10_000))) == 400


def test_values_are_told_in_short() -> None:
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    assert shown("heart") == "'heart'"
    assert shown(deep) == "[[[[...]]]]"
    assert len(shown("x" * 10_000)) <= 80
    assert len(shown({f"key {i}": "x" * 1000 for i in range(1000)})) < 500


SCRIPT = """
import atexit, sys
from hf_accum.cli.exit import run
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
        ("int('no number')", 1),
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
    if status == 130:
        assert done.stderr.startswith("interrupted: ended at once")
        assert "Traceback" not in done.stderr
    assert ("ZeroDivisionError" in done.stderr) == (status == 1 and "/" in work)
