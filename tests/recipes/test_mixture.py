"""Runs on several datasets: their shares, the figures of each, and the same run after it was killed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from launching import launch
from run_files import metrics_of

Recipe = Callable[..., Path]

SCRIPT = str(Path(__file__).with_name("faulty_recipe.py"))


@pytest.fixture
def mixed(notes: Path, tmp_path: Path) -> str:
    """90 rows of one ward and 50 of another, at shares of 1 to 3."""
    for ward, number in (("a", 0), ("b", 2)):
        (tmp_path / f"{ward}.jsonl").write_text((notes / f"train-{number}.jsonl").read_text())
    return f"{tmp_path}/a.jsonl:0.25,{tmp_path}/b.jsonl:0.75"


@pytest.mark.slow
def test_a_run_on_two_datasets_that_was_killed_goes_on_the_same(
    recipe: Recipe, tiny_model: Path, mixed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how: dict[str, Any] = {
        "dataset": mixed,
        "group_column": "patient",
        "labels": "eye,heart,muscle",
        "eval_fraction": 0.2,
        "effective_batch_size": 16,
        "num_epochs": 1,
        "save_every": 3,
        "dropout": 0,
    }
    whole = recipe(**how)
    said = capsys.readouterr().out
    assert f"25.00% of {tmp_path}/a.jsonl: " in said
    lines = metrics_of(whole)
    train = {ward: int(said.split(f"{ward}.jsonl: ")[1].split()[0]) for ward in "ab"}
    # The pass ends with the last row of the first ward: 4 examples to each row of it, but for the last ones.
    assert 0 <= 4 * train["a"] - (16 * (len(lines) - 1)) <= 16 + 3
    figures = json.loads((whole / "evaluation.json").read_text())
    assert set(figures["datasets"]) == {f"{tmp_path}/a.jsonl", f"{tmp_path}/b.jsonl"}
    of_each = figures["datasets"].values()
    numbers = [one["num_examples"] for one in of_each]
    assert numbers == [90 - train["a"], 50 - train["b"]]
    for name in ("accuracy", "loss"):
        mean = sum(one[name] * number for one, number in zip(of_each, numbers, strict=True)) / sum(numbers)
        assert mean == pytest.approx(figures[name], rel=1e-5)

    run = tmp_path / "killed"
    named = {"model": tiny_model, "output_dir": run, "max_length": 64, "micro_batch_size": 3} | how
    flags = [f"--{name}={value}" for name, value in named.items()]
    assert launch(SCRIPT, "SIGKILL", "0", "8", *flags).returncode != 0
    recipe(output_dir=run, **how, micro_batch_size=3)
    assert "resumed    after step 6, from " in capsys.readouterr().out
    resumed = metrics_of(run)
    for name in ("step", "window_digest", "num_items", "epoch", "learning_rate"):
        assert [m[name] for m in resumed] == [m[name] for m in lines]


@pytest.mark.slow
def test_other_weights_are_another_run(recipe: Recipe, mixed: str, capsys: pytest.CaptureFixture[str]) -> None:
    how: dict[str, Any] = {"max_steps": 4, "save_every": 2}
    folder = recipe(dataset=mixed, **how)
    (folder / "evaluation.json").unlink()
    with pytest.raises(SystemExit):
        recipe(output_dir=folder, dataset=mixed.replace(":0.25,", ":0.5,"), **how)
    assert "data_digest was" in capsys.readouterr().err


@pytest.mark.slow
def test_without_weights_and_by_shards_the_files_are_read_as_one_dataset(recipe: Recipe, mixed: str) -> None:
    folder = recipe(dataset=mixed.replace(":0.25", "").replace(":0.75", ""), max_steps=3, stream_split="shards")
    assert len(metrics_of(folder)) == 3
