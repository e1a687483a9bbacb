"""A run's folder is read whatever state it is in; what is wrong with it is told, and not quoted."""

import json
from pathlib import Path

import numpy as np
import pytest
from report_cases import step_line, write_lines, write_run

from hf_accum.errors import UserError
from hf_accum.report.run_files import RunFiles, read_run


def read(folder: Path) -> RunFiles:
    return read_run(folder, folder.name)


def test_a_whole_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 5)
    (folder / "run.json").write_text(json.dumps({"num_steps": 5, "recipe": "x"}))
    (folder / "checkpoints" / "step-00000003").mkdir(parents=True)
    (folder / "checkpoints" / "abandoned-step-00000004").mkdir()
    write_lines(folder / "resumes.jsonl", [{"step": 2}])
    run = read(folder)
    assert run.problems == []
    assert run.is_through
    assert run.steps.step.tolist() == [1, 2, 3, 4, 5]
    assert run.steps.of("num_tokens").tolist() == [800.0] * 5
    assert np.isnan(run.steps.of("unheard_of")).all()
    assert "window_digest" not in run.steps.columns
    assert run.config["lora.rank"] == 16
    assert (run.num_steps, run.checkpoints, run.resumes) == (5, [3], [2])


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 0, through=False)
    (folder / "metrics.jsonl").unlink()
    (folder / "tuning.json").unlink()
    run = read(folder)
    assert not run.is_through
    assert (len(run.steps), run.tuning, run.num_steps, run.problems) == (0, {}, None, [])


def test_damaged_lines_are_counted_and_not_quoted(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 3)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": "patient Smith"}\n[1]\n' + json.dumps(step_line(3, loss=7.0)) + "\n")
        file.write(json.dumps(step_line(4, loss=10**400)) + "\n" + '{"step": 5, "lo')
    run = read(folder)
    assert run.steps.step.tolist() == [1, 2, 3, 4]
    assert run.steps.of("loss")[2] == 7.0
    assert np.isnan(run.steps.of("loss")[3])
    told = " | ".join(run.problems)
    assert "2 lines are no JSON object and left out (line 5, 8)" in told
    assert "1 lines have no number of a step" in told
    assert "1 steps are there again" in told
    assert "Smith" not in told


@pytest.mark.parametrize("name", ["tuning.json", "evaluation.json", "config.yaml"])
@pytest.mark.parametrize("text", ["[1, 2]", '{"a": ', "\x00\xff", "[" * 1000])
def test_a_damaged_file_is_left_out(tmp_path: Path, name: str, text: str) -> None:
    folder = write_run(tmp_path / "run", 1)
    (folder / name).write_bytes(text.encode("latin-1"))
    assert read(folder).problems == [f"{name} is damaged, and is left out"]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda folder: None, "it is not there"),
        (lambda folder: folder.write_text("x"), "it is a file"),
        (lambda folder: folder.mkdir(), "it has no config.yaml and no metrics.jsonl"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path: Path, make: object, why: str) -> None:
    assert callable(make)
    make(tmp_path / "it")
    with pytest.raises(UserError, match=why):
        read(tmp_path / "it")


def test_runs_of_several_seeds_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    write_run(tmp_path / "seed-0")
    write_run(tmp_path / "seed-1")
    with pytest.raises(UserError, match=r"give these: \S*seed-0 \S*seed-1$"):
        read(tmp_path)
