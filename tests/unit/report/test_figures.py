"""Figures show the numbers of the files: read back from what was drawn."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_cases import CAPACITY, TUNING, step_line, write_lines, write_run

from hf_accum.accumulation.capacity import Capacity
from hf_accum.report.figures import memory_figures, speed_figures, training_figures, used_micro_batches
from hf_accum.report.run_files import RunFiles, read_run


def run_of(folder: Path, num_steps: int = 10) -> RunFiles:
    return read_run(write_run(folder, num_steps), folder.name)


def test_a_curve_is_that_of_the_file(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", 9)
    loss, rate, norm = training_figures([run])
    for drawn, name in ((loss, "loss"), (rate, "learning_rate"), (norm, "grad_norm")):
        (line,) = drawn.figure.axes[0].lines
        np.testing.assert_array_equal(line.get_xdata(), run.steps.step)
        np.testing.assert_array_equal(line.get_ydata(), run.steps.of(name))
        assert drawn.caption == "Every step is shown."


def test_runs_are_overlaid_each_in_its_colour(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / name, 3) for name in ("_one", "other")]
    panel = training_figures(runs)[0].figure.axes[0]
    assert len({line.get_color() for line in panel.lines}) == 2
    legend = panel.get_legend()
    assert legend is not None
    assert [text.get_text().strip() for text in legend.get_texts()] == ["_one", "other"]


def test_speed_padding_and_time(tmp_path: Path) -> None:
    speed, padding, time = speed_figures([run_of(tmp_path / "run", 4)])
    assert set(np.asarray(speed.figure.axes[0].lines[0].get_ydata())) == {1600.0}  # 800 tokens in 0.5 s
    np.testing.assert_allclose(np.asarray(padding.figure.axes[0].lines[0].get_ydata()), 20.0)
    waited, rest = time.figure.axes[0].collections
    assert np.asarray(waited.get_paths()[0].vertices)[:, 1].max() == pytest.approx(0.05)  # 10 % of 0.5 s
    assert np.asarray(rest.get_paths()[0].vertices)[:, 1].max() == pytest.approx(0.5)


def test_events_are_marked_on_the_loss(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 1)
    write_lines(folder / "metrics.jsonl", (step_line(step, num_oom_replays=int(step == 3)) for step in range(1, 9)))
    write_lines(folder / "nonfinite.jsonl", [{"step": 5}])
    write_lines(folder / "resumes.jsonl", [{"step": 6}])
    loss = training_figures([read_run(folder, "run")])[0]
    assert [np.asarray(line.get_xdata())[0] for line in loss.figure.axes[0].lines[1:]] == [3, 5, 6]
    assert loss.caption.endswith("Marked: replays, skips, resumes.")


def test_memory_beside_the_budget_and_the_capacity(tmp_path: Path) -> None:
    peak, capacity = memory_figures([run_of(tmp_path / "run", 3)])
    measured, budget = peak.figure.axes[0].lines
    assert set(np.asarray(measured.get_ydata())) == {1.0}  # GiB
    assert set(np.asarray(budget.get_ydata())) == {2.0}
    fits, used, tried, too_large = capacity.figure.axes[0].lines
    for length, number in zip(np.asarray(fits.get_xdata()), np.asarray(fits.get_ydata()), strict=True):
        assert number == min(32, 4096 // length)
    assert np.asarray(used.get_xdata())[0] == pytest.approx(1000 / 32, rel=0.006)
    assert np.asarray(used.get_ydata())[0] == pytest.approx(8, rel=0.006)
    assert tuple(np.asarray(line.get_xydata())[0].tolist() for line in (tried, too_large)) == ([512, 8], [512, 9])


LENGTHS = st.lists(st.integers(1, 512), min_size=1, max_size=40)


@settings(max_examples=30, deadline=None)
@given(LENGTHS)
def test_mean_micro_batches_of_ones_that_fit_lie_under_the_capacity(lengths: list[int]) -> None:
    capacity = Capacity.from_json(CAPACITY)
    micro_batches: list[list[int]] = [[]]
    for length in lengths:
        longest = max([*micro_batches[-1], length])
        if len(micro_batches[-1]) + 1 > min(32, 4096 // longest):
            micro_batches.append([])
        micro_batches[-1].append(length)
    padded = sum(len(one) * max(one) for one in micro_batches)
    mean_length, mean_number = padded / len(lengths), len(lengths) / len(micro_batches)
    assert mean_number <= min(capacity.most, 4096 / mean_length) * (1 + 1e-12)


@pytest.mark.parametrize("setting", ["query_column: term", "long_texts: windows"])
def test_no_micro_batches_are_shown_where_an_example_has_several_rows(tmp_path: Path, setting: str) -> None:
    folder = write_run(tmp_path / "run", 3)
    with (folder / "config.yaml").open("a") as file:
        file.write(f"{setting}\n")
    run = read_run(folder, "run")
    assert used_micro_batches(run) is None
    assert "are not shown: an example has several rows" in memory_figures([run])[1].caption


def test_a_size_that_was_given_is_said_to_be(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 3)
    given_size = TUNING | {"probes": [], "capacity": CAPACITY | {"peak": None}, "budget_bytes": 0}
    (folder / "tuning.json").write_text(json.dumps(given_size))
    peak, capacity = memory_figures([read_run(folder, "run")])
    assert len(peak.figure.axes[0].lines) == 1  # there is no budget
    assert "as given, nothing was measured" in capacity.caption


def test_what_is_not_in_the_files_is_not_drawn(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 1)
    write_lines(folder / "metrics.jsonl", [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}])
    (folder / "tuning.json").write_text('{"capacity": {"most": "many"}}')
    run = read_run(folder, "run")
    assert [drawn.name for drawn in training_figures([run])] == ["loss"]
    assert speed_figures([run]) == []
    assert memory_figures([run]) == []
