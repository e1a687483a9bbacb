"""The runs that may have been meant by a folder that is none."""

import os
from pathlib import Path

from hf_accum.report.which_run import runs_near


def test_the_run_around_a_place_and_the_newest_ones_in_it_are_named(tmp_path: Path) -> None:
    for number in range(7):
        run = tmp_path / f"run-{number}"
        (run / "adapter").mkdir(parents=True)
        (run / "config.yaml").touch()
        os.utime(run / "config.yaml", (number, number))
    newest = ", ".join(str(tmp_path / f"run-{number}") for number in (6, 5, 4, 3, 2))
    named = f"; runs that are there: {newest} and 2 older ones"
    assert runs_near(tmp_path) == runs_near(tmp_path / "rum-1") == named
    run = tmp_path / "run-3"
    assert runs_near(run / "adapter") == runs_near(run / "config.yaml") == f"; is {run} meant?"
    assert runs_near(tmp_path / "run-0" / "adapter" / "x") == ""
