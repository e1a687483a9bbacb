"""Several seeds: each a run of its own, and the mean and deviation of what they found."""

import json
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_accum.config.recipe import RecipeConfig
from hf_accum.config.serialization import write_config
from hf_accum.distributed.ranks import OneRank
from hf_accum.errors import Stopped, UserError
from hf_accum.run.folder import start_folder
from hf_accum.run.seeds import summary_of, train_seeds
from hf_accum.run.start import StartedRun

pytestmark = pytest.mark.usefixtures("accelerator")


@dataclass
class Trainer:
    """Stands in for a recipe's `train`: leaves what a run leaves; fails for a seed, once."""

    fails_at: int | None = None
    error: Exception | None = None

    def __post_init__(self) -> None:
        self.trained: list[RecipeConfig] = []

    def __call__(self, config: RecipeConfig) -> None:
        self.trained.append(config)
        folder = Path(config.output_dir)
        folder.mkdir(exist_ok=True)
        write_config(config, folder)
        if config.seed == self.fails_at and self.error is not None:
            error, self.error = self.error, None
            raise error
        figures = {"step": 9, "accuracy": config.seed / 10, "per_class": {"eye": {"f1": 0.5, "support": None}}}
        figures |= {"names": ["a"], "is_best": True} | ({"rare": 3} if config.seed == 4 else {})
        (folder / "evaluation.json").write_text(json.dumps(figures))


def config_of(tmp_path: Path, **more: Any) -> RecipeConfig:
    return RecipeConfig(output_dir=str(tmp_path / "run"), **{"seed": 3, "num_seeds": 3, **more})


def test_each_seed_has_its_folder_and_a_figure_its_mean_and_deviation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = Trainer()
    config = config_of(tmp_path, learning_rate=0.5)
    summary = train_seeds(train, config)
    folder = tmp_path / "run"
    assert train.trained == [
        replace(config, seed=3 + n, num_seeds=1, output_dir=str(folder / f"seed-{n}")) for n in range(3)
    ]
    assert json.loads((folder / "seeds.json").read_text()) == summary
    assert summary["seeds"] == [3, 4, 5]
    assert list(summary["figures"]) == ["accuracy", "per_class.eye.f1", "per_class.eye.support", "rare"]
    accuracy = summary["figures"]["accuracy"]
    assert accuracy["values"] == [0.3, 0.4, 0.5]
    assert math.isclose(accuracy["mean"], 0.4)
    assert math.isclose(accuracy["std"], 0.1)  # of a sample: sqrt((0.01 + 0 + 0.01) / 2)
    assert summary["figures"]["rare"] == {"mean": 3, "std": None, "values": [None, 3, None]}
    assert summary["figures"]["per_class.eye.support"] == {"mean": None, "std": None, "values": [None] * 3}
    said = capsys.readouterr().out
    assert f"seed 4, 2 of 3: {folder / 'seed-1'}" in said
    assert re.search(r"accuracy\s+│ 0\.4\s+│ 0\.1 ", said)
    assert "per_class" not in said
    assert f"all figures: {folder / 'seeds.json'}" in said


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=9))
def test_mean_and_deviation_are_those_of_their_definition(values: list[float]) -> None:
    found = summary_of(range(len(values)), [{"f": value} for value in values])["figures"]["f"]
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    assert math.isclose(found["mean"], mean, abs_tol=1e-6)
    assert math.isclose(found["std"], deviation, rel_tol=1e-9, abs_tol=1e-6)
    assert found["values"] == values


@pytest.mark.parametrize("error", [UserError("`dataset` x: has to be y"), Stopped("stopped by SIGINT")])
def test_a_failure_names_its_seed_and_the_same_command_goes_on_there(
    error: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, config = Trainer(fails_at=4, error=error), config_of(tmp_path)
    with pytest.raises(type(error), match=re.escape(str(error))):
        train_seeds(train, config)
    assert [one.seed for one in train.trained] == [3, 4]
    is_told_by_the_log = isinstance(error, Stopped)
    assert (f"ended by an error: seed 4 ({tmp_path / 'run' / 'seed-1'})" in capsys.readouterr().err) != (
        is_told_by_the_log
    )
    assert not (tmp_path / "run" / "seeds.json").exists()
    summary = train_seeds(train, config)
    assert [one.seed for one in train.trained] == [3, 4, 4, 5]
    assert "seed 3, 1 of 3: " in (said := capsys.readouterr().out)
    assert "has finished before, its figures are taken; --resume never trains it again" in said
    assert summary["figures"]["accuracy"]["values"] == [0.3, 0.4, 0.5]


@pytest.mark.parametrize(
    ("changed", "is_taken"),
    [
        ({"save_every": 7, "log_every": 1, "max_minutes": 3.0}, True),
        ({"num_seeds": 5}, True),
        ({"learning_rate": 0.1}, False),
        ({"learning_rate": 0.1, "allow_changes": "learning_rate"}, True),
        ({"seed": 2}, False),
        ({"eval_every": 5, "best_metric": "accuracy"}, False),
        ({"resume": "never"}, False),
    ],
)
def test_finished_runs_are_taken_where_their_settings_are_the_same(
    changed: dict[str, Any], is_taken: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, config = Trainer(), config_of(tmp_path)
    train_seeds(train, config)
    train.trained.clear()
    now = replace(config, **changed)
    summary = train_seeds(train, now)
    seeds = list(range(now.seed, now.seed + now.num_seeds))
    assert summary["figures"]["accuracy"]["values"] == [seed / 10 for seed in seeds]
    assert [one.seed for one in train.trained] == (seeds[3:] if is_taken else seeds)
    aside = tmp_path / "run-earlier-1"
    assert aside.exists() != is_taken
    assert (f"an earlier run is kept in {aside}" in capsys.readouterr().out) != is_taken
    assert is_taken or len(json.loads((aside / "seeds.json").read_text())["seeds"]) == 3


def test_all_runs_together_have_the_minutes_that_were_given(tmp_path: Path) -> None:
    train = Trainer()
    train_seeds(train, config_of(tmp_path, max_minutes=5.0))
    left = [one.max_minutes for one in train.trained]
    assert None not in left
    assert 5.0 > left[0] > left[1] > left[2] > 4.0  # type: ignore[operator]


def test_a_single_run_before_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    Trainer()(config_of(tmp_path, num_seeds=1))
    train_seeds(Trainer(), config_of(tmp_path))
    names = [*("config.yaml", "seed-0", "seed-1", "seed-2", "seeds.json")]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert sorted(path.name for path in (tmp_path / "run-earlier-1").iterdir()) == ["config.yaml", "evaluation.json"]
    assert start_folder(folder, RecipeConfig(output_dir=str(folder)), OneRank()) == tmp_path / "run-earlier-2"


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="run's folder; it holds thesis"):
        train_seeds(Trainer(), config_of(tmp_path))


def test_one_run_is_not_taken_for_several(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`num_seeds` 3: has to be 1 of a single run"):
        StartedRun(config_of(tmp_path), lambda *_: pytest.fail("not refused"))  # type: ignore[arg-type]
