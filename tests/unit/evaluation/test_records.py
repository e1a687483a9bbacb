"""What the files of held-out examples hold: every one once, and the worst first."""

import json
from pathlib import Path

import numpy as np

from hf_accum.evaluation.decisions import Decisions
from hf_accum.evaluation.judge import Judged, Worst
from hf_accum.evaluation.records import classified, measured, place_in, write_records

LOGITS = np.array([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0]], dtype=np.float32)
IDS = ["0:0", "1:0", "1:4"]


def judged(outputs: np.ndarray, truth: list[object], losses: list[float]) -> Judged:
    worst = [Worst(index, {"text": f"Mü {index}"}) for index in (2, 0)]
    ones = np.ones(3)
    return Judged(IDS, np.arange(3), ones, outputs, np.array(truth), 1.0, np.array(losses), worst)


def read(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_all_predictions_and_the_worst(tmp_path: Path) -> None:
    of = judged(LOGITS, [0, 1, 0], [0.12692801, 0.3, 3.0])
    place_of = place_in(["a.jsonl", "b.jsonl"])
    notes = write_records(tmp_path, of, place_of, classified(of, Decisions(("no", "yes"), False)))
    assert notes == [
        "every evaluated example is in predictions.jsonl; errors.jsonl has the 2 of 3 with the greatest loss"
    ]
    first, _, third = read(tmp_path / "predictions.jsonl")
    assert first == {
        "id": "a.jsonl:1",
        "label": "no",
        "prediction": "no",
        "probabilities": {"no": 0.880797, "yes": 0.119203},
        "loss": 0.126928,
    }
    assert (third["id"], third["label"], third["prediction"]) == ("b.jsonl:5", "no", "yes")
    worst, next_one = read(tmp_path / "errors.jsonl")
    assert worst == {**third, "text": "Mü 2"}
    assert next_one == {**first, "text": "Mü 0"}
    assert "Mü" in (tmp_path / "errors.jsonl").read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["errors.jsonl", "predictions.jsonl"]


def test_several_labels_numbers_and_what_is_no_number(tmp_path: Path) -> None:
    of = judged(LOGITS, [[1, 0], [0, 0], [1, 1]], [0.1, float("nan"), 2.0])
    record = classified(of, Decisions(("x", "y"), True))(2)
    assert (record["label"], record["prediction"]) == (["x", "y"], ["x", "y"])
    write_records(tmp_path, of, place_in(["f", "g"], 2), lambda index: {})
    assert [row["loss"] for row in read(tmp_path / "predictions.jsonl")] == [0.1, None, 2.0]
    numbers = judged(np.array([5.37, 2.0, 3.0], dtype=np.float32), [0.1, 2, 4], [0.25, 0.0, 1.0])
    assert measured(numbers)(0) == {"label": 0.1, "prediction": 5.37}


def test_files_that_cannot_be_written_are_said_and_end_nothing(tmp_path: Path) -> None:
    of = judged(LOGITS, [0, 1, 0], [1, 2, 3])
    notes = write_records(tmp_path / "nowhere", of, place_in(["a", "b"]), lambda index: {})
    assert notes[0].startswith("predictions.jsonl and errors.jsonl could not be written (")
