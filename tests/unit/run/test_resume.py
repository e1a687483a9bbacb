"""Going on with a run: whether it is still the same one. Whole runs: tests/recipes/test_resume.py."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hf_accum.config.lora import LoraConfig
from hf_accum.config.recipe import RecipeConfig
from hf_accum.distributed.ranks import OneRank
from hf_accum.errors import UserError
from hf_accum.run import resume
from hf_accum.run.checkpoint import Loaded
from hf_accum.run.resume import Resumed, digest_of_frozen, facts_of_run, find_resume


def facts(config: RecipeConfig, **changes: Any) -> dict[str, Any]:
    known = {"num_train": 90, "data_digest": "d"}
    given = {name: changes.pop(name) for name in list(changes) if name in known}
    return facts_of_run(config, OneRank(), changes.pop("precision", "no"), **known | given)


def go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: RecipeConfig, now: RecipeConfig, **changes: Any
) -> Resumed:
    """What is found of a run of before, whose checkpoint is that of step 6."""
    (tmp_path / "config.yaml").touch()
    loaded = Loaded(tmp_path / "checkpoints" / "step-6", {"facts": facts(before), "step": 6}, {})
    monkeypatch.setattr(resume, "load_latest", lambda folder, say: loaded)
    return find_resume(tmp_path, now, facts(now, **changes), OneRank())


@pytest.mark.parametrize(
    "free",
    [{"log_every": 3}, {"micro_batch_size": 4}, {"output_dir": "other"}, {"early_stopping_patience": None}],
)
def test_what_costs_and_shows_something_may_be_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: dict[str, Any]
) -> None:
    found = go_on(tmp_path, monkeypatch, RecipeConfig(), RecipeConfig(**free))
    assert (found.step, found.notes, found.starts_pass_anew) == (6, [], False)
    assert not found.leaves_out_unused_adapters, "of a run that says nothing of them"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"learning_rate": 0.5}, "learning_rate was 0.0003, now 0.5"),
        ({"lora": LoraConfig(rank=3)}, "lora.rank was 16, now 3"),
        ({"seed": 4}, "seed was 0, now 4"),
    ],
)
def test_what_trains_otherwise_is_refused_unless_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], said: str
) -> None:
    before = RecipeConfig(lora=LoraConfig(rank=16), learning_rate=3e-4, seed=0)
    values: dict[str, Any] = {"lora": before.lora, "learning_rate": before.learning_rate, "seed": 0} | changed
    with pytest.raises(UserError, match="is of a run that would go another way") as error:
        go_on(tmp_path, monkeypatch, before, RecipeConfig(**values))
    assert said in str(error.value)
    name = said.split()[0]
    assert f"`allow_changes {name}` goes on all the same" in str(error.value)
    found = go_on(tmp_path, monkeypatch, before, RecipeConfig(**values, allow_changes=[name]))
    assert found.step == 6
    assert found.starts_pass_anew == (name == "seed")  # which says the order of the examples
    assert found.notes[0] == f"{said}: allowed"


def test_the_same_data_elsewhere_is_no_change_and_other_data_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, now = RecipeConfig(dataset="a"), RecipeConfig(dataset="b")
    assert go_on(tmp_path, monkeypatch, before, now).step == 6
    with pytest.raises(UserError, match="dataset was a, now b; data_digest was d, now e"):
        go_on(tmp_path, monkeypatch, before, now, data_digest="e")
    with pytest.raises(UserError, match="precision was no, now bf16"):
        go_on(tmp_path, monkeypatch, before, before, precision="bf16")


def test_a_run_that_is_through_or_was_never_there_or_is_to_start_anew_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_resume(tmp_path, RecipeConfig(), {}, OneRank()).step == 0
    assert go_on(tmp_path, monkeypatch, RecipeConfig(), RecipeConfig(resume="never")).step == 0
    (tmp_path / "evaluation.json").touch()
    assert go_on(tmp_path, monkeypatch, RecipeConfig(), RecipeConfig()).step == 0


def test_a_checkpoint_that_is_none_is_refused_with_what_it_has_to_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`resume` .*nothing: has to be auto, never, or a checkpoint's folder"):
        find_resume(tmp_path, RecipeConfig(resume=str(tmp_path / "nothing")), {}, OneRank())


def test_the_digest_of_the_base_is_of_what_is_not_trained() -> None:
    frozen, trained = nn.Linear(30, 30), nn.Linear(2, 2)
    frozen.requires_grad_(False)
    model = nn.Sequential(frozen, trained)
    before = digest_of_frozen(model)
    with torch.no_grad():
        trained.weight.add_(1)
        assert digest_of_frozen(model) == before
        for index in ((0, 0), (29, 29)):
            frozen.weight[index] += 1
            assert digest_of_frozen(model) != before
            frozen.weight[index] -= 1
