"""A recipe with several seeds: each of its runs is the one that its seed gives alone, on one rank and on two."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import launch
from run_files import metrics_of
from safetensors.torch import load_file

Recipe = Callable[..., Path]
SHORT = {"max_steps": 3, "effective_batch_size": 8, "micro_batch_size": 4, "lora.rank": 2, "log_every": 1}
SAME = ("window_digest", "loss", "grad_norm", "learning_rate", "num_items")


def assert_same_run(run: Path, alone: Path) -> None:
    assert [[line[name] for name in SAME] for line in metrics_of(run)] == [
        [line[name] for name in SAME] for line in metrics_of(alone)
    ]
    weights, expected = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (run, alone))
    assert weights.keys() == expected.keys()
    assert all(weights[name].equal(expected[name]) for name in expected)
    assert (run / "evaluation.json").read_text() == (alone / "evaluation.json").read_text()


@pytest.mark.slow
def test_each_run_is_that_of_its_seed_alone(recipe: Recipe, tmp_path: Path) -> None:
    how = {**SHORT, "full_determinism": "true"}  # the cut, and so which dropout masks are drawn, depends on no time
    both = recipe(seed=5, num_seeds=2, **how)
    assert_same_run(both / "seed-1", recipe(seed=6, **how))
    of_each = [json.loads((both / f"seed-{n}" / "evaluation.json").read_text()) for n in range(2)]
    summary = json.loads((both / "seeds.json").read_text())
    for name in ("accuracy", "loss"):
        assert summary["figures"][name]["mean"] == statistics.fmean(figures[name] for figures in of_each)
    assert metrics_of(both / "seed-0")[0]["window_digest"] != metrics_of(both / "seed-1")[0]["window_digest"]


@pytest.mark.by_hand
def test_so_it_is_on_two_ranks_where_the_command_was_repeated(tiny_model: Path, notes: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    flags = {"model": tiny_model, "dataset": notes, "output_dir": both, "max_length": 64, **SHORT}
    flags |= {"seed": 5, "num_seeds": 2, "full_determinism": "true"}
    how = ("-m", "recipes.clinical_classification", *(f"--{name}={value}" for name, value in flags.items()))
    done = launch(*how, num_processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    summary, figures = (both / "seeds.json").read_text(), (both / "seed-1" / "evaluation.json").read_text()

    (both / "seed-1" / "evaluation.json").unlink()  # as of a run that ended before it was through
    again = launch(*how, num_processes=2)
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stdout.count("has finished before") == 1
    assert (both / "seeds.json").read_text() == summary
    earlier = both / "seed-1-earlier-1"  # the second run of its processes; this time it was the first one
    (earlier / "evaluation.json").write_text(figures)
    assert_same_run(both / "seed-1", earlier)
