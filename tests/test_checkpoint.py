"""A run's folder and its checkpoints: nothing of an earlier run lost, the best kept, and nothing else."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from thread_ranks import on_ranks, run_ranks
from tiny import load_classifier, make_tokenizer, save_base
from torch import nn

from hf_accum.adapters import add_lora
from hf_accum.checkpoint import BestCheckpoint, Checkpoints, start_folder
from hf_accum.config import LoraConfig, RecipeConfig, as_dict
from hf_accum.errors import RankFailed
from hf_accum.ranks import OneRank

CONFIG = RecipeConfig(seed=7)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# The folder


@pytest.mark.parametrize("is_there", [True, False])
def test_a_new_or_empty_folder_gets_its_configuration(tmp_path: Path, is_there: bool) -> None:
    folder = tmp_path / "runs" / "mine"
    if is_there:
        folder.mkdir(parents=True)
    assert start_folder(folder, CONFIG, OneRank()) is None
    assert files(tmp_path) == ["runs/mine/config.yaml"]
    assert yaml.safe_load((folder / "config.yaml").read_text()) == as_dict(CONFIG)


def test_earlier_runs_are_moved_aside_whole(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    for run in range(3):
        earlier = start_folder(folder, RecipeConfig(seed=run), OneRank())
        assert earlier == (None if run == 0 else tmp_path / f"mine-earlier-{run}")
        (folder / "checkpoints" / "step-1").mkdir(parents=True)
        (folder / "checkpoints" / "step-1" / "weights").write_text(str(run))
    for run, name in enumerate(("mine-earlier-1", "mine-earlier-2", "mine")):
        assert files(tmp_path / name) == ["checkpoints/step-1/weights", "config.yaml"]
        assert (tmp_path / name / "checkpoints" / "step-1" / "weights").read_text() == str(run)
        assert yaml.safe_load((tmp_path / name / "config.yaml").read_text())["seed"] == run


@pytest.mark.parametrize("name", ["thesis.tex", ".git", "metrics.jsonl"])
def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(ValueError, match=rf"--output_dir {tmp_path}: has to be new, empty, or an earlier run's"):
        start_folder(tmp_path, CONFIG, OneRank())
    assert files(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "precious"


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("precious")
    with pytest.raises(ValueError, match=r"--output_dir .*run: has to be a folder, it is a file"):
        start_folder(tmp_path / "run", CONFIG, OneRank())
    with pytest.raises(ValueError, match=r"--output_dir .*: has to be a folder to write in \(.*Not a directory"):
        start_folder(tmp_path / "run" / "sub", CONFIG, OneRank())
    assert (tmp_path / "run").read_text() == "precious"


def test_one_rank_makes_the_folder_and_all_know(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    assert run_ranks(3, lambda ranks: start_folder(folder, CONFIG, ranks)) == [None] * 3
    assert run_ranks(3, lambda ranks: start_folder(folder, CONFIG, ranks)) == [tmp_path / "mine-earlier-1"] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "mine-earlier-1"]
    (folder / "config.yaml").rename(folder / "other")
    first, *others = on_ranks(3, lambda ranks: start_folder(folder, CONFIG, ranks))
    assert isinstance(first, ValueError)
    assert all(
        isinstance(other, RankFailed) and "an earlier run's folder; it holds" in str(other) for other in others
    )


# The best


def best_of(metric: str, values: list[float | None]) -> tuple[list[bool], BestCheckpoint]:
    best = BestCheckpoint(metric)
    return [best.update(10 * i, {metric: value, "num_examples": 5}) for i, value in enumerate(values, 1)], best


@pytest.mark.parametrize(
    ("metric", "values", "better"),
    [
        ("accuracy", [0.5, 0.4, 0.6, 0.6, 0.7], [True, False, True, False, True]),
        ("loss", [0.5, 0.4, 0.6, 0.4, 0.3], [True, True, False, False, True]),
        ("mse", [2.0, 3.0, 1.0], [True, False, True]),
        ("mae", [2.0, 3.0, 1.0], [True, False, True]),
        ("brier_score", [0.2, 0.3, 0.1], [True, False, True]),
        ("pearson", [-0.5, 0.0, -0.1], [True, True, False]),
        ("macro_auroc", [None, 0.5, None, 0.6], [False, True, False, True]),
        ("loss", [math.nan, 3.0, math.nan, 2.0], [False, True, False, True]),
        ("accuracy", [math.nan, 0.1, math.inf], [False, True, True]),
    ],
)
def test_what_is_better_than_all_before(metric: str, values: list[float | None], better: list[bool]) -> None:
    found, best = best_of(metric, values)
    assert found == better
    last = max(i for i, is_better in enumerate(better) if is_better)
    assert (best.value, best.step, best.num_evaluations_since) == (
        values[last],
        10 * (last + 1),
        len(values) - 1 - last,
    )


@given(
    values=st.lists(st.none() | st.floats(allow_nan=False), min_size=1), metric=st.sampled_from(("loss", "macro_f1"))
)
def test_the_best_is_the_first_of_the_best(values: list[float | None], metric: str) -> None:
    _, best = best_of(metric, values)
    known = [value for value in values if value is not None]
    if known:
        expected = (min if metric == "loss" else max)(known)
        assert best.step == 10 * (values.index(expected) + 1)
        assert best.value == expected
    else:
        assert (best.step, best.value) == (None, None)


def test_patience_counts_evaluations_without_a_better_one() -> None:
    best = BestCheckpoint("accuracy")
    history = []
    for value in (0.5, 0.4, 0.6, 0.6, 0.5):
        best.update(1, {"accuracy": value})
        history.append(best.is_beaten_for(2))
    assert history == [False, False, False, False, True]
    assert not best.is_beaten_for(None)
    assert not best.is_beaten_for(3)


def test_without_a_metric_nothing_is_the_best() -> None:
    best = BestCheckpoint(None)
    assert not best.update(1, {"accuracy": 1.0})
    assert best.step is None
    assert not best.is_beaten_for(1)


# Checkpoints


@pytest.fixture
def model(tmp_path: Path) -> Any:
    pretrained = load_classifier(save_base(tmp_path / "base", "bert"))
    return add_lora(
        pretrained.model,
        LoraConfig(rank=2, target_modules=["query"]),
        task_type="SEQ_CLS",
        new_modules=pretrained.new_modules,
    )


def mark(model: nn.Module, step: int) -> None:
    """Make the trainable weights those of a step."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.constant_(parameter, step)


def marks(model: nn.Module) -> set[float]:
    return {float(value) for p in model.parameters() if p.requires_grad for value in p.detach().unique()}


def steps(folder: Path) -> list[int]:
    """Of the checkpoints that are there."""
    assert all(
        (path / "adapter" / "adapter_model.safetensors").is_file() for path in (folder / "checkpoints").iterdir()
    )
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").iterdir())


def make_checkpoints(folder: Path, model: nn.Module, *, is_main: bool = True) -> Checkpoints:
    return Checkpoints(folder / "run", model, make_tokenizer(), is_main=is_main)


def test_the_weights_of_a_step_come_back(tmp_path: Path, model: Any) -> None:
    checkpoints = make_checkpoints(tmp_path, model)
    for step in (100, 12_345_678):
        mark(model, step)
        checkpoints.save(step)
    assert [p.name for p in sorted((tmp_path / "run" / "checkpoints").iterdir())] == [
        "step-00000100",
        "step-12345678",
    ]
    mark(model, 3)
    checkpoints.load(100)
    assert marks(model) == {100.0}


@pytest.mark.parametrize(
    ("saved", "best", "kept"),
    [
        ([], [10, 20, 30], [30]),  # only the best one
        ([10, 20, 30], [], [10, 20, 30]),
        ([20, 40], [10, 30, 50], [20, 40, 50]),
        ([20], [10, 20, 30], [20, 30]),  # 20 is kept for itself, 10 is no longer the best
        ([20], [10, 20], [20]),
        ([10, 20], [10], [10, 20]),
        ([], [10], [10]),
    ],
)
def test_what_was_saved_stays_and_of_the_best_only_the_last(
    tmp_path: Path, model: Any, saved: list[int], best: list[int], kept: list[int]
) -> None:
    """In the order of a recipe: at a step first the save that is due, then the best."""
    checkpoints = make_checkpoints(tmp_path, model)
    for step in (10, 20, 30, 40, 50):
        mark(model, step)
        if step in saved:
            checkpoints.save(step)
        if step in best:
            checkpoints.save_best(step)
    assert steps(tmp_path / "run") == kept
    for step in kept:
        checkpoints.load(step)
        assert marks(model) == {float(step)}


def test_the_best_may_be_saved_for_itself_later(tmp_path: Path, model: Any) -> None:
    checkpoints = make_checkpoints(tmp_path, model)
    checkpoints.save_best(10)
    checkpoints.save_best(10)
    checkpoints.save(10)
    checkpoints.save_best(20)
    assert steps(tmp_path / "run") == [10, 20]


def test_only_the_main_rank_writes(tmp_path: Path, model: Any) -> None:
    checkpoints = make_checkpoints(tmp_path, model, is_main=False)
    checkpoints.save(1)
    checkpoints.save_best(2)
    checkpoints.save_best(3)
    assert checkpoints.export() == tmp_path / "run" / "adapter"
    assert not (tmp_path / "run").exists()


def test_the_result_stands_beside_the_checkpoints(tmp_path: Path, model: Any) -> None:
    checkpoints = make_checkpoints(tmp_path, model)
    mark(model, 1)
    checkpoints.save(1)
    mark(model, 2)
    for _ in range(2):  # also in place of an earlier one
        assert checkpoints.export() == tmp_path / "run" / "adapter"
    assert (tmp_path / "run" / "adapter" / "adapter_config.json").is_file()
    assert (tmp_path / "run" / "adapter" / "tokenizer.json").is_file()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["adapter", "checkpoints"]
    assert marks(model) == {2.0}


def test_full_fine_tuning_saves_models(tmp_path: Path) -> None:
    model: Any = load_classifier(save_base(tmp_path / "base", "bert")).model
    checkpoints = make_checkpoints(tmp_path, model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    checkpoints.save_best(5)
    assert checkpoints.export() == tmp_path / "run" / "model"
    mark(model, 9)
    checkpoints.load(5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [p.name for p in (tmp_path / "run" / "checkpoints" / "step-00000005").iterdir()] == ["model"]
