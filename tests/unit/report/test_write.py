"""Files of a report: where they may go, all of them or none, and again while a run goes on."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from report_cases import write_lines, write_run

from hf_accum.errors import UserError
from hf_accum.report.write import places, watch, write_report


def few(folder: Path, *, through: bool = True) -> Path:
    """A run of few figures, which is quickly drawn."""
    write_run(folder, 0, through=through)
    (folder / "tuning.json").unlink()
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_page_is_in_the_run_s_folder(tmp_path: Path) -> None:
    folder = few(tmp_path / "run")
    before = names(folder)
    assert write_report([folder])[0] == folder / "report.html"
    assert names(folder) - before == {"report.html"}
    assert (folder / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_figures_are_files_too(tmp_path: Path) -> None:
    folder = few(tmp_path / "run")
    write_report([folder], tmp_path / "page.html", figures=tmp_path / "figures")
    assert names(tmp_path / "figures") == {
        f"{n}.{kind}" for n in ("reliability", "confusion") for kind in ("svg", "png")
    }
    assert not (folder / "report.html").exists()


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    one, other = few(tmp_path / "one"), few(tmp_path / "other")
    cases: list[tuple[list[Path], Path | None, Path | None, str]] = [
        ([one, other], None, None, "`output`: has to be given for 2 runs"),
        ([one, tmp_path / "other" / ".." / "one"], tmp_path / "x.html", None, "each has to be given once"),
        ([one], tmp_path, None, "has to be a file, it is a folder"),
        ([one], tmp_path / "no" / "x.html", None, "has to be in a folder that is there"),
        ([one], one / "x.html", None, "has to be outside of a run's folder"),
        ([one], None, one / "figures", "has to be outside of a run's folder"),
        ([one], None, one / "config.yaml" / "x", "has to be outside of a run's folder"),
        ([one], None, tmp_path / "no" / "figures", "has to be a folder, or a new one"),
    ]
    for folders, output, figures, why in cases:
        with pytest.raises(UserError, match=why):
            places(folders, output, figures)
    assert places([one], one / "report.html", None) == (one / "report.html", None)


@pytest.mark.parametrize("failing", [1, 3])
def test_on_a_full_disk_nothing_is_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    folder = few(tmp_path / "run")
    (folder / "predictions.jsonl").unlink()  # one figure is enough
    (folder / "report.html").write_text("the page before")
    before, num_synced = names(folder), 0

    def fsync(descriptor: int) -> None:
        nonlocal num_synced
        num_synced += 1
        if num_synced == failing:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(UserError, match=r"report\.html: the report could not be written .*No space left"):
        write_report([folder], figures=tmp_path / "figures")
    assert names(folder) == before
    assert (folder / "report.html").read_text() == "the page before"
    assert not (tmp_path / "figures").exists()


def test_a_watched_run_is_drawn_when_it_has_written_something_until_it_is_through(tmp_path: Path) -> None:
    folder = few(tmp_path / "run", through=False)
    (folder / "metrics.jsonl").unlink()
    said: list[str] = []
    pages: list[str] = []

    def pause(seconds: float) -> None:
        pages.append((folder / "report.html").read_text())
        if len(pages) == 2:  # at the first look nothing has changed
            write_lines(folder / "metrics.jsonl", [{"step": 7, "loss": 1.0}])
        if len(pages) == 3:
            (folder / "evaluation.json").write_text('{"step": 7, "loss": 0.5}')

    watch([folder], say=said.append, pause=pause)
    assert said == [f"written: {folder / 'report.html'}, after step {step}" for step in (0, 7, 7)]
    assert ["refresh" in page for page in pages] == [True] * 3
    last = (folder / "report.html").read_text()
    assert "refresh" not in last
    assert "0.5" in last


def test_a_watch_ends_at_an_interrupt_with_a_page_that_waits_for_nothing(tmp_path: Path) -> None:
    folder = few(tmp_path / "run", through=False)
    said: list[str] = []

    def pause(seconds: float) -> Any:
        raise KeyboardInterrupt

    watch([folder], say=said.append, pause=pause)
    assert said[-1].endswith("no longer watched")
    assert "refresh" not in (folder / "report.html").read_text()


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    places = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "c"]
    folders = [few(place, through=False) for place in places]
    runs = write_report(folders, tmp_path / "x.html")[1]
    assert [run.name for run in runs] == ["a/run", "b/run", f"{tmp_path.name}/c"]
