"""Figures of held-out examples: what is written in them is what was counted."""

import json
from pathlib import Path

import numpy as np
from report_cases import write_run

from hf_accum.report.evaluation_figures import reliability, reliability_bins, taken_for
from hf_accum.report.held_out import Confusion, LabelCounts
from hf_accum.report.run_files import read_run


def test_a_confusion_matrix_has_its_counts_where_they_belong() -> None:
    counts = np.array([[3, 0], [2, 41]])
    panel = taken_for(Confusion(("flu", "c" * 50), counts)).figure.axes[0]
    written = {
        (round(text.get_position()[1]), round(text.get_position()[0])): text.get_text() for text in panel.texts
    }
    assert written == {(0, 0): "3", (1, 0): "2", (1, 1): "41"}
    assert [label.get_text() for label in panel.get_yticklabels()] == ["flu  1", f"{'c' * 27}...  2"]


def test_of_many_classes_the_figure_says_that_some_are_together() -> None:
    drawn = taken_for(Confusion(tuple(map(str, range(50))), np.eye(50, dtype=int)))
    assert "The 29 most frequent classes; the others are one row and column" in drawn.caption
    assert drawn.is_wide


def test_labels_are_bars_of_right_missed_and_wrong() -> None:
    counts = LabelCounts(("a", "b"), np.array([1, 5]), np.array([0, 2]), np.array([4, 0]))
    panel = taken_for(counts).figure.axes[0]
    assert [[bar.get_width() for bar in bars] for bars in panel.containers] == [[5, 1], [2, 0], [0, 4]]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["b", "a"]  # the most frequent first


def test_bins_without_examples_are_left_out(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"), "run")
    assert reliability_bins(run) == [(0.75, 0.5, 4)]
    drawn = reliability([run])
    assert drawn is not None
    assert np.asarray(drawn.figure.axes[0].lines[1].get_xydata())[0].tolist() == [0.75, 0.5]


def test_without_a_table_there_is_no_figure(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    for odd in ({}, {"reliability": "x"}, {"reliability": [None, {"count": 1}]}, {"reliability": None}, []):
        (folder / "evaluation.json").write_text(json.dumps({"calibration": odd, "step": 1}))
        assert reliability([read_run(folder, "run")]) is None
