"""Counts of held-out examples, and the worst of them, beside the rows themselves."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_cases import write_lines, write_run
from sklearn.metrics import confusion_matrix

from hf_accum.report.held_out import Confusion, LabelCounts, counted, samples_of, worst_of
from hf_accum.report.run_files import RunFiles, read_run

NAMES = ("flu", "cold", "<b>")


def run_of(folder: Path, rows: list[Any], names: tuple[str, ...] = NAMES) -> RunFiles:
    write_run(folder, 1, classes=names)
    write_lines(folder / "predictions.jsonl", rows)
    return read_run(folder, "run")


def test_the_confusion_is_that_of_scikit_learn(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    true, predicted = generator.choice(NAMES, 200), generator.choice(NAMES, 200)
    run = run_of(
        tmp_path / "run",
        [{"label": a, "prediction": b} for a, b in zip(true.tolist(), predicted.tolist(), strict=True)],
    )
    found = counted(run)
    assert isinstance(found, Confusion)
    assert found.names == NAMES
    np.testing.assert_array_equal(found.counts, confusion_matrix(true, predicted, labels=NAMES))


def test_several_labels_are_counted_each(tmp_path: Path) -> None:
    rows = [
        {"label": ["flu", "cold"], "prediction": ["flu"]},
        {"label": [], "prediction": ["flu", "<b>"]},
        {"label": ["cold"], "prediction": []},
    ]
    found = counted(run_of(tmp_path / "run", rows))
    assert isinstance(found, LabelCounts)
    assert (found.right.tolist(), found.missed.tolist(), found.wrong.tolist()) == ([1, 0, 0], [0, 2, 0], [1, 0, 1])


@pytest.mark.parametrize("row", [{"label": 1.5, "prediction": 2.5}, {"label": "a text", "prediction": "flu"}])
def test_rows_without_classes_are_told_and_not_counted(tmp_path: Path, row: Any) -> None:
    run = run_of(tmp_path / "run", [row])
    assert counted(run) is None
    assert run.problems == ["predictions.jsonl: 1 rows have no class of evaluation.json, and are not counted"]


def test_rows_of_a_task_without_labels_are_no_problem(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", [{"id": "a:1", "entities": [], "predicted_entities": []}])
    assert counted(run) is None
    assert not run.problems


@given(st.integers(1, 12), st.integers(2, 12), st.integers(0, 2**32 - 1))
def test_many_classes_are_put_together_without_losing_any(number: int, most: int, seed: int) -> None:
    counts = np.random.default_rng(seed).integers(0, 9, (number, number))
    whole = Confusion(tuple(f"c{i}" for i in range(number)), counts)
    found = whole.shortened(most)
    assert len(found.names) == min(number, most)
    assert found.counts.sum() == counts.sum()
    for row, name in enumerate(found.names):
        for column, other in enumerate(found.names):
            if name in whole.names and other in whole.names:
                assert found.counts[row, column] == counts[whole.names.index(name), whole.names.index(other)]


def test_the_worst_are_the_first_of_the_file(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 1, classes=[f"c{i}" for i in range(5)])  # 25 rows
    run = read_run(folder, "run")
    found = worst_of(run, texts=True)
    assert [one.id for one in found] == [f"notes.jsonl:{number}" for number in range(1, 21)]
    assert found[1].shown == {"text": "the text of notes.jsonl:2"}
    assert (found[1].label, found[1].prediction) == ("c0 (0.200)", "c1 (0.200)")
    assert all(one.shown == {} for one in worst_of(run, texts=False))


def test_a_label_that_may_be_a_text_is_not_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 1)
    rows = [
        {"id": "1", "label": "Mr Smith coughs", "prediction": [{"text": "Smith"}], "note": "Smith", "loss": 1.0},
        {"id": "2", "label": 1.25, "prediction": 2.0, "loss": None},
    ]
    write_lines(folder / "errors.jsonl", rows)
    first, second = worst_of(read_run(folder, "run"), texts=False)
    assert "Smith" not in str(first)
    assert (second.label, second.prediction, second.loss) == ("1.25", "2", None)


def test_a_long_text_is_cut_and_this_is_said(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 1)
    write_lines(folder / "errors.jsonl", [{"id": "1", "text": "x" * 5000}])
    (one,) = worst_of(read_run(folder, "run"), texts=True)
    assert one.shown["text"] == "x" * 4000 + " ... (1,000 more characters are in the file)"


def test_samples_of_a_language_model(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 1)
    rows = [
        {"when": when, "number": number, "prompt": f"p{number}", "generated": when, "reference": "r"}
        for when in ("before", "after")
        for number in (1, 2)
    ]
    write_lines(folder / "samples.jsonl", rows)
    found = samples_of(read_run(folder, "run"))
    assert [one.title.split(", ")[1] for one in found] == ["before the training", "after the training"] * 2
    assert found[2].shown == {"prompt": "p2", "generated": "before", "reference": "r"}


def test_entities_are_shown_with_their_labels_and_what_has_no_label_has_none(tmp_path: Path) -> None:
    entities = [{"label": "drug", "text": "aspirin", "start": 0}, {"label": "x", "text": "a", "start": 9}]
    rows = [{"id": "a:1", "text": "aspirin, a", "entities": entities, "predicted_entities": [], "loss": 2.0}]
    run = run_of(tmp_path / "run", [])
    write_lines(run.folder / "errors.jsonl", rows)
    (worst,) = worst_of(run, texts=True)
    assert (worst.label, worst.prediction) == (None, None)
    assert worst.shown == {"text": "aspirin, a", "entities": "aspirin (drug), a (x)", "predicted_entities": "none"}
    (hidden,) = worst_of(run, texts=False)
    assert not hidden.shown
