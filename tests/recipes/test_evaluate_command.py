"""`hf-accum evaluate`: the figures of a run, on what it held out and on other data."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from every_recipe import run_of
from sklearn.metrics import accuracy_score, f1_score

from hf_accum.cli.main import main

Recipe = Callable[..., Path]
MADE = {"max_steps": 4, "effective_batch_size": 16, "learning_rate": 0.01}


def evaluated(folder: Path, output: Path, *flags: str) -> dict[str, Any]:
    main(["evaluate", str(folder), f"--output={output}", *flags])
    return json.loads((output / "evaluation.json").read_text())


def told_in(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def numbers_of(figures: dict[str, Any]) -> dict[str, float]:
    return {name: v for name, v in figures.items() if isinstance(v, int | float) and name != "step"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [{}, {"problem": "multi_label_classification", "tune_thresholds": True}], ids=["one label", "thresholds"]
)
def test_what_was_held_out_has_the_same_figures_again(recipe: Recipe, tmp_path: Path, how: dict[str, Any]) -> None:
    folder = recipe(**MADE, **how)
    again = evaluated(folder, tmp_path / "again")
    first = json.loads((folder / "evaluation.json").read_text())
    assert numbers_of(again) == pytest.approx(numbers_of(first), rel=1e-6)
    assert again["confidence_intervals"].keys() == first["confidence_intervals"].keys()
    for one, other in zip(told_in(tmp_path / "again"), told_in(folder), strict=True):
        assert {**one, "loss": 0, "probabilities": 0} == {**other, "loss": 0, "probabilities": 0}
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=2e-6)


def test_all_rows_of_other_data_are_judged_as_scikit_learn_does(
    recipe: Recipe, notes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = recipe(**MADE)
    rows = [json.loads(line) for line in (notes / "train-2.jsonl").read_text().splitlines()]
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"note": row["text"], "label": row["label"]}) + "\n" for row in rows))
    how = [f"--dataset={other}", "--text_column=note", "--group_column=note"]
    figures = evaluated(folder, tmp_path / "out", *how, "--micro_batch_size=3")
    told = told_in(tmp_path / "out")
    assert [row["label"] for row in told] == [row["label"] for row in rows]
    truth, predicted = [[row[name] for row in told] for name in ("label", "prediction")]
    assert figures["num_examples"] == len(rows)
    assert figures["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    present = sorted({*truth, *predicted})
    assert figures["macro_f1"] == pytest.approx(f1_score(truth, predicted, labels=present, average="macro"))
    assert "written:" in capsys.readouterr().out
    main(["evaluate", str(folder), *how, "--micro_batch_size=50"])  # without a folder nothing is left
    assert f"num_examples {len(rows)}" in capsys.readouterr().out
    assert not list(folder.parent.glob("*evaluation*"))


def test_all_rows_are_judged_of_few_or_of_one_group_and_no_sample(
    recipe: Recipe, notes: Path, tmp_path: Path
) -> None:
    folder = recipe(**MADE, max_eval_examples=4)
    one, same = tmp_path / "one.jsonl", tmp_path / "same.jsonl"
    one.write_text('{"text": "syncope", "label": "heart"}\n')
    same.write_text("".join(f'{{"text": "syncope {n}", "label": "heart", "patient": 7}}\n' for n in range(9)))
    for number, (data, expected) in enumerate([(one, 1), (same, 9), (notes, 150), (f"{notes}:0.5,{same}:0.5", 159)]):
        group = ["--group_column=text"] if data == one else ["--group_column=patient"]
        figures = evaluated(folder, tmp_path / f"out-{number}", f"--dataset={data}", *group)
        assert figures["num_examples"] == expected
        assert len(told_in(tmp_path / f"out-{number}")) == expected
    asked = evaluated(folder, tmp_path / "asked", f"--dataset={notes}", "--max_eval_examples=5")
    assert asked["num_examples"] == 5


def test_all_masks_of_other_data_are_judged(tmp_path: Path, accelerator: object) -> None:
    folder = run_of("driving_images-segmentation", tmp_path)
    figures = evaluated(folder, tmp_path / "out", f"--dataset={tmp_path / 'driving_images-data'}")
    assert figures["num_examples"] == 120


def test_classes_that_are_taken_for_others_are_said(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = recipe(**MADE)
    typed = Features({"text": Value("string"), "label": ClassLabel(names=["lung", "skin", "brain"])})
    rows = {"text": [f"syncope {n}" for n in range(9)], "label": [n % 3 for n in range(9)]}
    Dataset.from_dict(rows, features=typed).to_parquet(tmp_path / "typed.parquet")
    said = "the classes lung, skin, brain: they are taken for eye, heart, muscle"
    on_typed = f"--dataset={tmp_path / 'typed.parquet'}"
    main(["evaluate", str(folder), on_typed, "--group_column=text"])
    assert said in capsys.readouterr().out
    main(["compare", str(folder), str(folder), on_typed, "--group_column=text"])
    assert capsys.readouterr().out.count(said) == 2


def test_what_cannot_be_evaluated_is_said(recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = recipe(**MADE)
    other = tmp_path / "other.jsonl"
    rows = [{"text": f"syncope {place}", "label": "heart"} for place in range(30)]
    other.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"text": "a rash", "label": "skin"}]))

    def said(*arguments: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["evaluate", *map(str, arguments)])
        assert ended.value.code == 2
        return capsys.readouterr().err

    on_other = [f"--dataset={other}", "--group_column=text"]
    assert "label 'skin' is out of range: it is none of eye, heart, muscle" in said(folder, *on_other)
    main(["evaluate", str(folder), *on_other, "--on_bad_row=skip"])
    assert "num_examples 30" in capsys.readouterr().out
    assert "has to be the folder of a run" in said(tmp_path)
    assert "no_such.jsonl" in said(folder, "--dataset=no_such.jsonl")
    assert "--no_flag" in said(folder, "--no_flag=1")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert "error: the dataset has no usable row (0 bad rows)" in said(folder, f"--dataset={empty}")
    assert "no column 'other'" in said(folder, *on_other, "--text_column=other")
    assert "has to be a new or empty folder" in said(folder, f"--output={folder}")
    (folder / "evaluation.json").unlink()
    assert "has to be a run that is through" in said(folder, *on_other)


@pytest.mark.parametrize("failing", ["predictions.jsonl", "evaluation.json"])
def test_on_a_full_disk_the_figures_are_shown_and_nothing_is_written(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failing: str
) -> None:
    folder, place = recipe(**MADE), tmp_path / "disk"
    place.mkdir()
    replace = Path.replace

    def full(path: Path, target: Path) -> Path:
        if target.name == failing and target.is_relative_to(place):
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(SystemExit) as ended:
        evaluated(folder, place / "out")
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert "accuracy" in told.out
    assert "No space left" not in told.out
    assert told.err.splitlines()[-1].startswith(f"error: --output {place / 'out'}: ")
    assert "are free there: make room" in told.err
    assert "nothing is left of it" in told.err
    assert not list(place.iterdir())
    monkeypatch.undo()
    evaluated(folder, place / "new" / "out")
    assert sorted(file.name for file in (place / "new" / "out").iterdir()) == [
        "errors.jsonl",
        "evaluation.json",
        "predictions.jsonl",
    ]
