"""Checkpoints of a run: whole or told, the newest and the best kept."""

import errno
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import load_classifier, make_tokenizer, save_base
from torch import nn

import hf_accum.run.checkpoint as checkpoint_module
from hf_accum.config.lora import LoraConfig
from hf_accum.config.recipe import RecipeConfig
from hf_accum.config.serialization import write_config
from hf_accum.distributed.ranks import OneRank
from hf_accum.models.lora import add_lora
from hf_accum.models.saving import load_weights, save_model
from hf_accum.run.checkpoint import BestCheckpoint, Checkpoints, load, load_latest
from hf_accum.run.folder import start_folder
from hf_accum.run.manifest import Damaged
from hf_accum.run.training_state import TrainingState

CONFIG = RecipeConfig(seed=7)
SUPPORT = Path(__file__).parents[2] / "support"


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


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
    """Of the checkpoints that are there, each of them whole."""
    found = sorted((folder / "checkpoints").iterdir())
    for path in found:
        assert (path / "adapter" / "adapter_model.safetensors").is_file()
        assert load(path).step == int(path.name.removeprefix("step-"))
    return [load(path).step for path in found]


SAID: list[str] = []


def make_checkpoints(folder: Path, model: nn.Module, *, keep: int = 2, ranks: Any = None) -> Checkpoints:
    SAID.clear()
    return Checkpoints(folder / "run", model, make_tokenizer(), ranks or OneRank(), keep, SAID.append)


def save(checkpoints: Checkpoints, step: int, best: int | None = None, **tensors: torch.Tensor) -> None:
    checkpoints.save(TrainingState(tensors, {"made": "up"}), {"step": step, "best": {"step": best}})
    assert checkpoints.wait()


def test_the_weights_of_a_step_come_back(tmp_path: Path, model: Any) -> None:
    checkpoints = make_checkpoints(tmp_path, model)
    for step in (100, 12_345_678):
        mark(model, step)
        save(checkpoints, step, moment=torch.full((3,), float(step)))
    assert [p.name for p in sorted((tmp_path / "run" / "checkpoints").iterdir())] == [
        "step-00000100",
        "step-12345678",
    ]
    mark(model, 3)
    assert checkpoints.restore_weights(100)
    assert marks(model) == {100.0}
    loaded = load_latest(tmp_path / "run", SAID.append)
    assert loaded is not None
    assert loaded.step == 12_345_678
    assert loaded.state.tensors["moment"].tolist() == [12_345_678.0] * 3
    assert loaded.state.numbers == {"made": "up"}
    assert SAID == []


def test_what_is_saved_is_what_was_when_it_began(tmp_path: Path, model: Any) -> None:
    """Training goes on while it is written."""
    checkpoints = make_checkpoints(tmp_path, model)
    mark(model, 1)
    checkpoints.save(TrainingState({}, {}), {"step": 1})
    mark(model, 2)
    checkpoints.wait()
    assert checkpoints.restore_weights(1)
    assert marks(model) == {1.0}


@pytest.mark.parametrize(("keep", "best", "kept"), [(2, None, [40, 50]), (1, 20, [20, 50]), (3, 50, [30, 40, 50])])
def test_the_newest_are_kept_and_the_best(
    tmp_path: Path, model: Any, keep: int, best: int | None, kept: list[int]
) -> None:
    checkpoints = make_checkpoints(tmp_path, model, keep=keep)
    for step in (10, 20, 30, 40, 50):
        mark(model, step)
        save(checkpoints, step, best if best is not None and step >= best else None)
    assert steps(tmp_path / "run") == kept
    for step in kept:
        assert checkpoints.restore_weights(step)
        assert marks(model) == {float(step)}


def test_a_step_that_is_there_is_not_saved_again(tmp_path: Path, model: Any) -> None:
    """Nothing has changed, and a kill between taking it away and putting it back would lose it."""
    checkpoints = make_checkpoints(tmp_path, model)
    save(checkpoints, 7)
    (path,) = (tmp_path / "run" / "checkpoints").iterdir()
    before = [(file, file.stat().st_ino, file.stat().st_mtime_ns) for file in sorted(path.rglob("*"))]
    save(checkpoints, 7)
    assert [(file, file.stat().st_ino, file.stat().st_mtime_ns) for file in sorted(path.rglob("*"))] == before


def test_the_former_best_stays_until_the_new_one_is_there(
    tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_accum.run.checkpoint._SECONDS_BETWEEN_TRIES", ())
    checkpoints = make_checkpoints(tmp_path, model, keep=1)
    save(checkpoints, 10, best=10)
    save(checkpoints, 20, best=10)
    with monkeypatch.context() as full:
        full.setattr("hf_accum.run.checkpoint.fill_folder_atomically", lambda *_: full_for_good())
        checkpoints.save(TrainingState({}, {}), {"step": 30, "best": {"step": 30}})
        assert not checkpoints.wait()
    save(checkpoints, 40, best=30)
    assert steps(tmp_path / "run") == [10, 40]
    save(checkpoints, 50, best=50)
    save(checkpoints, 60, best=50)
    assert steps(tmp_path / "run") == [50, 60]


def test_a_result_is_saved_with_patience_and_what_cannot_be_is_said(
    tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_accum.run.checkpoint._SECONDS_BETWEEN_TRIES", (0.01, 0.01))
    checkpoints = make_checkpoints(tmp_path, model)
    tries: list[int] = []

    def full_at_first(*arguments: Any) -> None:
        tries.append(1)
        if len(tries) < 3:
            full_for_good()
        save_model(*arguments)

    monkeypatch.setattr("hf_accum.run.checkpoint.save_model", full_at_first)
    assert (checkpoints.export() / "adapter_model.safetensors").is_file()
    assert len(SAID) == 2
    monkeypatch.setattr("hf_accum.run.checkpoint.save_model", lambda *_: full_for_good())
    with pytest.raises(ValueError, match=r"adapter could not be saved .*No space left on device.*: make room"):
        checkpoints.export()


def test_only_the_main_rank_writes(tmp_path: Path, model: Any) -> None:
    class Second(OneRank):
        index = 1

    checkpoints = make_checkpoints(tmp_path, model, ranks=Second())
    assert not checkpoints.is_main
    assert checkpoints.export() == tmp_path / "run" / "adapter"
    assert not (tmp_path / "run").exists()


def test_the_result_stands_beside_the_checkpoints(tmp_path: Path, model: Any) -> None:
    checkpoints = make_checkpoints(tmp_path, model)
    mark(model, 1)
    save(checkpoints, 1)
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
    save(checkpoints, 5)
    assert checkpoints.export() == tmp_path / "run" / "model"
    mark(model, 9)
    assert checkpoints.restore_weights(5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_is_restored_from_safetensors_of_its_own_folder_only(tmp_path: Path) -> None:
    model = load_classifier(save_base(tmp_path / "base", "bert")).model
    folder = tmp_path / "model"
    save_model(model, make_tokenizer(), folder)
    load_weights(model, folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load_weights(model, folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(OSError, match="an adapter in the place of a model"):
        load_weights(model, folder)


def test_no_file_of_a_checkpoint_is_a_pickle(tmp_path: Path, model: Any) -> None:
    save(make_checkpoints(tmp_path, model), 1)
    names = files(tmp_path / "run" / "checkpoints" / "step-00000001")
    assert {Path(name).suffix for name in names} <= {".json", ".safetensors", ".md", ".txt", ".jinja"}
    assert "manifest.json" in names


def test_a_disk_that_is_full_stops_nothing_and_is_said(
    tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = make_checkpoints(tmp_path, model)
    mark(model, 1)
    save(checkpoints, 1)
    written = checkpoint_module.write_manifest
    failures = iter([True, True, False])

    def full(folder: Path) -> None:
        if next(failures):
            raise OSError(errno.ENOSPC, "No space left on device")
        written(folder)

    monkeypatch.setattr(checkpoint_module, "write_manifest", full)
    monkeypatch.setattr(checkpoint_module, "_SECONDS_BETWEEN_TRIES", (0.01, 0.01))
    mark(model, 2)
    checkpoints.save(TrainingState({}, {}), {"step": 2})
    checkpoints.wait(hurry=False)
    assert steps(tmp_path / "run") == [1, 2]
    assert len(SAID) == 2
    assert all("step-00000002 could not be saved (OSError" in line and "No space left" in line for line in SAID)
    assert all("what there was before stays; tried again in" in line for line in SAID)
    monkeypatch.setattr(checkpoint_module, "write_manifest", lambda _: full_for_good())
    checkpoints.save(TrainingState({}, {}), {"step": 3})
    assert not checkpoints.wait()
    assert steps(tmp_path / "run") == [1, 2]
    assert files(tmp_path / "run") == [
        name for name in files(tmp_path / "run") if ".partial" not in name and ".old" not in name
    ]


@pytest.mark.slow
def test_a_disk_that_is_really_full_is_no_end_either(tmp_path: Path) -> None:
    """A limit on the size of files, which safetensors meets with an error of its own."""
    script = f"""
import resource, signal, sys
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(SUPPORT)!r}]
from pathlib import Path
from test_checkpoint import *
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path({str(tmp_path)!r})
model = load_classifier(save_base(folder / "base", "bert")).model
checkpoints = make_checkpoints(folder, model)
save(checkpoints, 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
checkpoints.save(TrainingState({{}}, {{}}), {{"step": 2}})
assert not checkpoints.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert [p.name for p in (folder / "run" / "checkpoints").iterdir()] == ["step-00000001"]
assert "could not be saved" in SAID[0], SAID
save(checkpoints, 3)
print("went on")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("went on\n")


def full_for_good() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flipped(data: bytes, at: float = 0.5) -> bytes:
    place = min(len(data) - 1, int(len(data) * at))
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(_truncated, id="truncated"),
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: data + b" ", id="longer"),
        pytest.param(lambda data: _flipped(data, 0.0), id="first byte"),
        pytest.param(_flipped, id="a byte within"),
        pytest.param(lambda data: _flipped(data, 1.0), id="last byte"),
        pytest.param(None, id="missing"),
    ],
)
def test_any_damage_is_noticed_and_the_one_before_is_used(tmp_path: Path, model: Any, damage: Any) -> None:
    """Of every file of a checkpoint."""
    checkpoints = make_checkpoints(tmp_path, model)
    for step in (1, 2):
        save(checkpoints, step, moment=torch.zeros(3))
    folder = tmp_path / "run" / "checkpoints" / "step-00000002"
    for name in files(folder):
        path = folder / name
        data = path.read_bytes()
        if damage is None:
            path.unlink()
        elif damage(data) == data:
            continue
        else:
            path.write_bytes(damage(data))
        SAID.clear()
        loaded = load_latest(tmp_path / "run", SAID.append)
        if name == "manifest.json" and loaded is not None and loaded.step == 2:
            # Only a byte of white space can go unnoticed.
            assert damage is not None
            assert json.loads(damage(data)) == json.loads(data)
        else:
            assert loaded is not None
            assert loaded.step == 1
            assert len(SAID) == 1
            assert "step-00000002/" in SAID[0]
        path.write_bytes(data)
    loaded = load_latest(tmp_path / "run", SAID.append)
    assert loaded is not None
    assert loaded.step == 2
    for step in (1, 2):
        (tmp_path / "run" / "checkpoints" / f"step-{step:08}" / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"none of its 2 checkpoints can be used .*`resume never`"):
        load_latest(tmp_path / "run", SAID.append)


def test_a_run_that_goes_on_behind_an_earlier_one_sets_the_later_ones_aside(tmp_path: Path, model: Any) -> None:
    checkpoints = make_checkpoints(tmp_path, model, keep=1)
    save(checkpoints, 3)
    run = tmp_path / "run"
    write_config(CONFIG, run)
    save(make_checkpoints(tmp_path, model, keep=2), 6)
    start_folder(run, CONFIG, OneRank(), load(run / "checkpoints" / "step-00000003"))
    save(make_checkpoints(tmp_path, model, keep=1), 4)
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["abandoned-step-00000006", "step-00000004"]


def test_a_manifest_cannot_name_what_is_outside(tmp_path: Path, model: Any) -> None:
    save(make_checkpoints(tmp_path, model), 1)
    folder = tmp_path / "run" / "checkpoints" / "step-00000001"
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../../secret"] = {"bytes": 1, "blake2b": ""}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Damaged, match="outside of the folder"):
        load(folder)
