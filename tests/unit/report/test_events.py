"""Events of a run, beside what was planted in its files."""

from pathlib import Path

from report_cases import step_line, write_lines, write_run

from hf_accum.report.events import events_of
from hf_accum.report.run_files import read_run


def test_all_that_was_planted_is_found(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 1)
    planted = {
        2: {"num_oom_replays": 3},
        4: {"num_oom_replays": 1},
        5: {"grad_norm": None, "loss": None},
        6: {"num_alloc_retries": 2},
        7: {"num_alloc_retries": 2},
    }
    write_lines(folder / "metrics.jsonl", (step_line(step, **planted.get(step, {})) for step in range(1, 8)))
    write_lines(folder / "nonfinite.jsonl", [{"step": 5, "example_ids": ["0:1"]}])
    write_lines(folder / "resumes.jsonl", [{"step": 3}, {"step": 3}])
    (folder / "checkpoints" / "step-00000003").mkdir(parents=True)
    found = {
        event.what.split(",")[0].split(":")[0].split("(")[0].strip(): event
        for event in events_of(read_run(folder, "run"))
    }
    counts = {what: (event.count, event.where) for what, event in found.items()}
    assert counts == {
        "windows started anew": (4, "2, 4"),
        "windows left out": (1, "5"),
        "steps without a finite gradient norm": (1, "5"),
        "steps without a finite loss": (1, "5"),
        "steps at which the allocator had to free memory and ask again": (1, "6"),
        "gone on after": (2, "3, 3"),
        "checkpoints that are there": (1, "3"),
    }


def test_of_many_steps_the_first_are_named_and_the_others_counted(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 1)
    write_lines(folder / "metrics.jsonl", (step_line(step, num_oom_replays=1) for step in range(1, 1101)))
    (event,) = events_of(read_run(folder, "run"))
    assert event.count == 1100
    assert event.where.startswith("1, 2, 3, ")
    assert event.where.endswith("40 and 1,060 more")


def test_a_quiet_run_has_none(tmp_path: Path) -> None:
    assert events_of(read_run(write_run(tmp_path / "run"), "run")) == []
