"""Results that are remembered: by a key of all that matters, and found anew where they are wrong."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from tuning_cases import find, llama, peak_of_two, trace_llama_once
from workload_cases import CPU, make_workload

from hf_accum.config.optimization import OptimizationFlags
from hf_accum.device.memory import open_memory
from hf_accum.models.optimizer import build_optimizer
from hf_accum.tuner.cache import cache_path, read


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path / "hf"))
    trace_llama_once(monkeypatch)
    return tmp_path / "hf" / "hf_accum" / "tuning"


def test_the_second_run_takes_one_probe_and_finds_the_same(cache: Path) -> None:
    budget = 4 * peak_of_two(lora=True)
    (first,) = find(llama(lora=True), budget)
    (second,) = find(llama(lora=True), budget)
    assert (first.from_cache, second.from_cache, len(second.probes)) == (False, True, 1)
    assert second.largest() == first.largest()


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda whole: whole[:-40], id="cut"),
        pytest.param(lambda whole: "", id="empty", marks=pytest.mark.by_hand),
        pytest.param(lambda whole: "{}", id="nothing", marks=pytest.mark.slow),
        pytest.param(lambda whole: "[1]", id="list", marks=pytest.mark.by_hand),
        pytest.param(lambda whole: whole.replace("moments", "other"), id="renamed", marks=pytest.mark.slow),
    ],
)
def test_a_file_that_is_no_result_is_written_anew(cache: Path, damage: Callable[[str], str]) -> None:
    budget = 4 * peak_of_two(lora=True)
    (first,) = find(llama(lora=True), budget)
    (path,) = cache.iterdir()
    path.write_text(damage(path.read_text()))
    (again,) = find(llama(lora=True), budget)
    assert (again.from_cache, again.largest()) == (False, first.largest())
    assert list(cache.iterdir()) == [path]  # written anew, nothing half-written beside it


@pytest.mark.slow
def test_a_wrong_entry_corrects_itself(cache: Path) -> None:
    budget = 4 * peak_of_two(lora=True)
    (first,) = find(llama(lora=True), budget)
    (path,) = cache.iterdir()
    entry = json.loads(path.read_text())
    entry["prediction"]["training"]["moments"] = [
        [0.5 * factor for factor in row] for row in entry["prediction"]["training"]["moments"]
    ]
    path.write_text(json.dumps(entry))
    (corrected,) = find(llama(lora=True), budget)
    assert (corrected.from_cache, corrected.largest()) == (False, first.largest())
    assert find(llama(lora=True), budget)[0].from_cache


def test_everything_that_matters_is_in_the_key() -> None:
    memory = open_memory(CPU, "1GiB")
    work = llama()
    paths = {
        cache_path(work, memory, CPU, 1),
        cache_path(work, memory, CPU, 2),
        cache_path(work, open_memory(CPU, "auto"), CPU, 1),
        cache_path(llama(lora=True), memory, CPU, 1),
        cache_path(replace(work, max_length=256), memory, CPU, 1),
        cache_path(replace(work, precision="bf16"), memory, CPU, 1),
        cache_path(replace(work, optimizer=lambda m: torch.optim.SGD(m.parameters())), memory, CPU, 1),
        cache_path(make_workload("llama", lora=False, checkpointing=True), memory, CPU, 1),
    }
    assert len(paths) == 8
    assert cache_path(llama(), open_memory(CPU, "2GiB"), CPU, 1) in paths  # how much there is, is looked up anew
    slower = replace(
        work, optimizer=lambda m: build_optimizer(m, OptimizationFlags(learning_rate=1e-5, weight_decay=0.3))
    )
    assert cache_path(slower, memory, CPU, 1) in paths  # as is the learning rate, which takes no bytes


BROKEN: list[tuple[tuple[str, ...], object]] = [
    (("slope",), 0),
    (("slope",), math.nan),
    (("offset_bytes",), math.inf),
    (("limit_bytes",), math.inf),
    (("frontier",), -1),
    (("costs", "token"), -1),
    (("prediction", "fixed", "weights"), "x"),
    (("prediction", "fixed", "weights"), -5),
    (("prediction", "state_shapes"), [[[8, 8], "nn"]]),
    (("prediction", "state_shapes"), [[[-8], "float32"]]),
    (("prediction", "training", "moments"), []),
    (("prediction",), None),
]


@pytest.mark.slow
def test_a_broken_entry_is_found_anew(cache: Path) -> None:
    (first,) = find(llama(), 4 * peak_of_two())
    (path,) = cache.iterdir()
    whole = path.read_text()
    assert read(path) is not None
    for where, value in BROKEN:
        entry = json.loads(whole)
        inner = entry
        for name in where[:-1]:
            inner = inner[name]
        inner[where[-1]] = value
        path.write_text(json.dumps(entry))
        assert read(path) is None, (where, value)
    (again,) = find(llama(), 4 * peak_of_two())
    assert not again.from_cache
    assert again.largest() == first.largest()
    assert read(path) is not None


def test_a_cache_that_cannot_be_written_is_done_without(cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    (tuning,) = find(llama(), 4 * peak_of_two())
    assert not tuning.from_cache


def test_a_run_that_may_probe_longer_does_not_take_what_one_found_that_may_not() -> None:
    work = llama()
    paths = {cache_path(work, open_memory(CPU, 10**9), CPU, 1, seconds) for seconds in (None, 5.0, 60.0)}
    assert len(paths) == 3
