"""A run's folder: one run's at a time, and nothing of an earlier run lost."""

import errno
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from thread_ranks import on_ranks, run_ranks

from hf_accum.config.recipe import RecipeConfig
from hf_accum.config.serialization import as_dict
from hf_accum.distributed.ranks import OneRank
from hf_accum.errors import RankFailed
from hf_accum.files import check_output_dir
from hf_accum.run.checkpoint import Loaded
from hf_accum.run.folder import claim_folder, start_folder

CONFIG = RecipeConfig(seed=7)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("is_there", [True, False])
def test_a_new_or_empty_folder_gets_its_configuration(tmp_path: Path, is_there: bool) -> None:
    folder = tmp_path / "runs" / "mine"
    if is_there:
        folder.mkdir(parents=True)
    assert start_folder(folder, CONFIG, OneRank()) is None
    assert files(tmp_path) == ["runs/mine/config.yaml"]
    assert yaml.safe_load((folder / "config.yaml").read_text()) == as_dict(CONFIG)


def test_earlier_runs_are_moved_aside_whole(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    for run in range(3):
        earlier = start_folder(folder, RecipeConfig(seed=run), OneRank())
        assert earlier == (None if run == 0 else tmp_path / f"mine-earlier-{run}")
        (folder / "checkpoints" / "step-1").mkdir(parents=True)
        (folder / "checkpoints" / "step-1" / "weights").write_text(str(run))
    for run, name in enumerate(("mine-earlier-1", "mine-earlier-2", "mine")):
        assert files(tmp_path / name) == ["checkpoints/step-1/weights", "config.yaml"]
        assert (tmp_path / name / "checkpoints" / "step-1" / "weights").read_text() == str(run)
        assert yaml.safe_load((tmp_path / name / "config.yaml").read_text())["seed"] == run


def test_each_resume_is_written_down_and_a_report_is_no_obstacle(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    start_folder(folder, CONFIG, OneRank())
    (folder / "report.html").write_text("to look at")
    for step in (30, 10):  # the second one goes on behind the first one's checkpoint
        resumed = Loaded(folder / "checkpoints" / f"step-{step:08}", {"step": step}, {})
        assert start_folder(folder, CONFIG, OneRank(), resumed) is None
    assert (folder / "resumes.jsonl").read_text() == '{"step": 30}\n{"step": 10}\n'
    assert start_folder(folder, CONFIG, OneRank()) == tmp_path / "mine-earlier-1"
    assert files(folder) == ["config.yaml"]


@pytest.mark.parametrize("name", ["thesis.tex", ".git", "metrics.jsonl"])
def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(ValueError, match=rf"`output_dir` {tmp_path}: has to be new, empty, or an earlier run's"):
        start_folder(tmp_path, CONFIG, OneRank())
    assert files(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "precious"


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("precious")
    with pytest.raises(ValueError, match=r"`output_dir` .*run: has to be a folder, it is a file"):
        start_folder(tmp_path / "run", CONFIG, OneRank())
    with pytest.raises(ValueError, match=r"`output_dir` .*: has to be a folder to write in \(.*Not a directory"):
        start_folder(tmp_path / "run" / "sub", CONFIG, OneRank())
    assert (tmp_path / "run").read_text() == "precious"


def test_one_rank_makes_the_folder_and_all_know(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    assert run_ranks(3, lambda ranks: start_folder(folder, CONFIG, ranks)) == [None] * 3
    assert run_ranks(3, lambda ranks: start_folder(folder, CONFIG, ranks)) == [tmp_path / "mine-earlier-1"] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "mine-earlier-1"]
    (folder / "config.yaml").rename(folder / "other")
    first, *others = on_ranks(3, lambda ranks: start_folder(folder, CONFIG, ranks))
    assert isinstance(first, ValueError)
    assert all(
        isinstance(other, RankFailed) and "an earlier run's folder; it holds" in str(other) for other in others
    )


@pytest.mark.parametrize("name", [".config.yaml.17.partial", ".hf-accum-abc"])
def test_what_a_killed_process_left_is_no_obstacle(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / name).write_text("half")
    check_output_dir(folder)
    assert start_folder(folder, CONFIG, OneRank()) is None
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]


@pytest.mark.slow
def test_a_folder_is_one_run_s_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_accum.run.folder._PATIENCE_SECONDS", 0.2)
    folder = tmp_path / "mine"
    before = claim_folder(folder, OneRank())  # it is not there yet
    with run_in(folder):
        (folder / "metrics.jsonl").touch()
        for _ in range(2):
            with pytest.raises(ValueError, match="another run is at work in it"):
                claim_folder(folder, OneRank())
        with pytest.raises(ValueError, match="another run is at work in it"):
            start_folder(folder, CONFIG, OneRank(), claim=before)
        assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "metrics.jsonl"]
        assert not list(tmp_path.glob("mine-earlier-*"))
    claim = claim_folder(folder, OneRank())
    claim.take(folder)  # again
    assert start_folder(folder, CONFIG, OneRank(), claim=claim) == tmp_path / "mine-earlier-1"
    claim_folder(folder, OneRank())  # of one process the runs come one after the other, whatever keeps the claim
    with pytest.raises(AssertionError, match="another run is at work in it"), run_in(folder):
        pass
    del claim
    with run_in(folder):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "mine-earlier-1", "mine-earlier-2"]


def test_a_killed_process_leaves_no_claim_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_accum.run.folder._PATIENCE_SECONDS", 0.2)
    folder = tmp_path / "mine"
    with run_in(folder) as other:
        with pytest.raises(ValueError, match="another run is at work in it"):
            claim_folder(folder, OneRank())
        other.kill()
        other.wait()
    assert start_folder(folder, CONFIG, OneRank(), claim=claim_folder(folder, OneRank())) is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "mine-earlier-1"]


def test_a_folder_that_cannot_be_moved_has_its_claim_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_mount", lambda self: True)
    claim = claim_folder(tmp_path, OneRank())
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert start_folder(tmp_path, CONFIG, OneRank(), claim=claim) is None
    assert files(tmp_path) == [".lock", "config.yaml"]
    del claim
    assert files(tmp_path) == ["config.yaml"]


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_where_files_cannot_be_locked_a_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def flock(*_: int) -> None:
        raise OSError(error, "no locks")

    monkeypatch.setattr("fcntl.flock", flock)
    folder = tmp_path / "mine"
    folder.mkdir()
    assert start_folder(folder, CONFIG, OneRank(), claim=claim_folder(folder, OneRank())) is None
    assert files(folder) == ["config.yaml"]


@contextmanager
def run_in(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, whose run has begun in a folder."""
    script = f"""
import sys
from pathlib import Path
from hf_accum.config.recipe import RecipeConfig
from hf_accum.distributed.ranks import OneRank
from hf_accum.run.folder import claim_folder, start_folder
from hf_accum.run import folder
folder._PATIENCE_SECONDS = 0.2
claim = claim_folder(Path({str(folder)!r}), OneRank())
start_folder(Path({str(folder)!r}), RecipeConfig(), OneRank(), claim=claim)
print("begun", flush=True)
sys.stdin.read()
"""
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", script], text=True, **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "begun\n", process.stderr.read()
        yield process
        process.stdin.close()


def test_a_folder_that_is_released_is_free_while_the_claim_lives(tmp_path: Path) -> None:
    claim = claim_folder(tmp_path, OneRank())
    assert (lock := tmp_path.with_name(f".{tmp_path.name}.lock")).exists()
    for _ in range(2):
        claim.release()
        assert not lock.exists()
