"""`hf-accum compare`: a model that learned is better than one that did not, and the rule says so."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from every_recipe import run_of
from launching import launch

from hf_accum.cli.commands import compare
from hf_accum.cli.main import main
from hf_accum.errors import UserError

Recipe = Callable[..., Path]


def test_a_run_that_learned_is_better_and_the_rule_decides_the_status(
    recipe: Recipe, notes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    worse = recipe(max_steps=1, learning_rate=1e-6)
    better = recipe(num_epochs=6, effective_batch_size=16, learning_rate=0.01)
    found, rows = tmp_path / "found.json", notes / "train-2.jsonl"
    how = [f"--dataset={rows}", "--group_column=text"]
    main(["compare", str(worse), str(better), *how, "--require=better:accuracy", f"--output={found}"])
    told = capsys.readouterr().out
    assert "better:accuracy: kept" in told
    assert "macro_average_precision" in told  # whole, as the rule needs it
    written = json.loads(found.read_text())
    assert written["is_kept"] is True
    accuracy = written["figures"]["accuracy"]
    assert accuracy["second"] > accuracy["first"]
    assert accuracy["interval_of_difference"][0] > 0
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(better), str(worse), *how, "--require=not_worse:accuracy:0.05", f"--output={found}"])
    assert ended.value.code == 1
    loss = -json.loads(found.read_text())["figures"]["accuracy"]["interval_of_difference"][0]
    why = f"accuracy may be worse by {loss:.4f}, as far as these rows can tell"
    assert f"not_worse:accuracy:0.05: not kept: {why}" in capsys.readouterr().out
    main(["compare", str(worse), str(better), f"--output={found}"])  # on what both held out
    both = json.loads(found.read_text())["figures"]["accuracy"]
    for side, run in (("first", worse), ("second", better)):
        assert both[side] == pytest.approx(json.loads((run / "evaluation.json").read_text())["accuracy"])
    one_class = tmp_path / "one_class.jsonl"  # where no rank says anything: no area under a curve
    lines = rows.read_text().splitlines()
    one_class.write_text(
        "\n".join(line for line in lines if json.loads(line)["label"] == json.loads(lines[0])["label"])
    )
    main(["compare", str(worse), str(better), f"--dataset={one_class}", "--group_column=text", f"--output={found}"])
    assert "nan" not in capsys.readouterr().out
    assert json.loads(found.read_text())["figures"]["macro_auroc"]["first"] is None
    for wrong, said in (
        (["--require=best"], "--require best: has to be"),
        (["--output=no/such/file"], "has to be in a folder that is there"),
        (["--output=/"], "has to be a file, it is a folder"),
        (["--text_column=other"], "no column 'other'"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["compare", str(worse), str(better), *how, *wrong])
        assert ended.value.code == 2
        assert said in capsys.readouterr().err
    one = tmp_path / "one.jsonl"
    one.write_text(rows.read_text().split("\n")[0])
    main(["compare", str(worse), str(better), f"--dataset={one}", f"--output={found}"])
    figures = json.loads(found.read_text())["figures"]
    assert figures["macro_auroc"] == {"first": None, "second": None, "interval_of_difference": None}  # not a number
    usage = worse / "adapter" / "usage.json"
    usage.write_text(usage.read_text().replace('"text-classification"', '"token-classification"'))
    with pytest.raises(SystemExit):
        main(["compare", str(worse), str(better)])
    told = capsys.readouterr().err
    assert "error: the two runs have different tasks: token-classification and text-classification\n" in told


@pytest.mark.parametrize(
    "recipe_id",
    [
        "clinical_ner",
        *(
            pytest.param(recipe_id, marks=pytest.mark.slow)
            for recipe_id in ("medical_lm", "medical_mlm", "term_retrieval", "driving_images-segmentation")
        ),
    ],
)
def test_runs_of_every_task_are_compared_by_the_figures_that_evaluate_gives(
    recipe_id: str, tmp_path: Path, accelerator: object
) -> None:
    runs = [run_of(recipe_id, tmp_path, output=tmp_path / f"run-{seed}", seed=seed) for seed in (0, 1)]
    named = recipe_id.split("-")[0]
    data, found = tmp_path / f"{named}-data", tmp_path / "found.json"
    main(["compare", *map(str, runs), f"--dataset={data}", f"--output={found}"])
    figures = json.loads(found.read_text())["figures"]
    for side, run in zip(("first", "second"), runs, strict=True):
        # With the masks, of masked texts, of the first run's seed.
        main(["evaluate", str(run), f"--dataset={data}", f"--output={tmp_path / side}", "--seed=0"])
        own = json.loads((tmp_path / side / "evaluation.json").read_text())
        assert figures
        for name, one in figures.items():
            assert one[side] == pytest.approx(own[name], rel=1e-5, abs=1e-7), name
    main(["compare", str(runs[0]), str(runs[0]), f"--dataset={data}", f"--output={found}"])
    for name, one in json.loads(found.read_text())["figures"].items():
        assert one["first"] == one["second"], name
        assert one["interval_of_difference"] in ([0.0, 0.0], None), name


def test_runs_with_the_same_sample_are_compared_on_it(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As their own evaluations, also those of other seeds; of different samples all rows, as is said."""
    first, second, other = (
        recipe(max_steps=1, max_eval_examples=size, seed=seed) for seed, size in enumerate((7, 7, "null"))
    )
    found = tmp_path / "found.json"
    main(["compare", str(first), str(second), f"--output={found}"])
    assert "at most 7 rows, the same for both (--max_eval_examples; null: all rows)" in capsys.readouterr().out
    losses = json.loads(found.read_text())["figures"]["loss"]
    for side, run in (("first", first), ("second", second)):
        evaluation = json.loads((run / "evaluation.json").read_text())
        assert losses[side] == pytest.approx(evaluation["loss"])
        assert evaluation["num_examples"] == 7
    main(["compare", str(first), str(other), f"--output={found}"])
    assert "evaluated on at most 7 and all of them (--max_eval_examples)" in capsys.readouterr().out
    evaluation = json.loads((other / "evaluation.json").read_text())
    assert json.loads(found.read_text())["figures"]["loss"]["second"] == pytest.approx(evaluation["loss"])


def test_a_column_for_each_label_that_one_run_does_not_know(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"text": f"cough {n % 7} {n}", "fever": n % 2, "rash": n % 3 % 2, "cough": int(n % 5 > 2)} for n in range(90)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    how = {"dataset": data, "problem": "multi_label_classification", "max_steps": 2, "group_column": "text"}
    first = recipe(**how, label_column="fever,cough")
    second = recipe(**how, label_column="rash,cough,fever")
    found, told = tmp_path / "found.json", tmp_path / "told.jsonl"
    main(["compare", str(first), str(second), f"--dataset={data}", f"--output={found}"])
    assert "does not know all labels of the other" in " ".join(capsys.readouterr().out.split())
    figures = json.loads(found.read_text())["figures"]
    assert "loss" not in figures
    main(["predict", str(first), f"--dataset={data}", f"--output={told}"])
    right = [
        {name for name in ("fever", "cough", "rash") if row[name]} == set(json.loads(line)["prediction"])
        for row, line in zip(rows, told.read_text().splitlines(), strict=True)
    ]
    assert figures["accuracy"]["first"] == pytest.approx(sum(right) / len(right))

    def look(*_: object, **__: object) -> None:
        raise AssertionError("of which it is known before that it is for nothing")

    monkeypatch.setattr("hf_accum.cli.evaluation.open_evaluation", look)
    for figure in ("loss", "f2"):  # the one is not there of labels that a run does not know
        with pytest.raises(SystemExit) as ended:
            main(["compare", str(first), str(second), f"--dataset={data}", f"--require=better:{figure}"])
        assert ended.value.code == 2
        assert f"--require {figure}: has to be one of {', '.join(figures)}\n" in capsys.readouterr().err


def test_figures_that_stay_in_a_process_are_refused_on_several_ranks_before_they_are_computed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened: Any = SimpleNamespace(ranks=SimpleNamespace(count=2, index=1), task=object(), data=None)
    monkeypatch.setattr("hf_accum.cli.evaluation.open_evaluation", lambda *_, **__: nullcontext(opened))
    of_any: Any = SimpleNamespace(dataset=None, split="train")
    with pytest.raises(UserError, match="are compared in one process"):
        compare._judged(tmp_path, of_any, of_any, of_any, {})


@pytest.mark.slow
def test_two_ranks_compare_as_one_and_say_it_once(recipe: Recipe, notes: Path, tmp_path: Path) -> None:
    runs = [str(recipe(max_steps=2, learning_rate=0.01, seed=seed)) for seed in (0, 1)]
    found = [tmp_path / f"{num_ranks}.json" for num_ranks in (1, 2)]
    how = ["compare", *runs, f"--dataset={notes / 'train-2.jsonl'}", "--group_column=text"]
    main([*how, f"--output={found[0]}"])
    done = launch("-m", "hf_accum.cli.main", *how, f"--output={found[1]}", num_processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("macro_f1") == 1
    one, two = (json.loads(file.read_text())["figures"] for file in found)
    assert one.keys() == two.keys()
    for name, figure in one.items():
        for side, value in figure.items():
            assert two[name][side] == pytest.approx(value, abs=1e-5), (name, side)
