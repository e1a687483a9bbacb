"""A run with each tracker as it works offline: what it was given is read back from the tracker's own files."""

import importlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from launching import ROOT
from run_files import metrics_of

Curve = list[tuple[int, float]]
NAMES = [name for name in ("tensorboard", "wandb", "mlflow", "trackio") if find_spec(name) is not None]
OFFLINE = {
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "PYTHONWARNINGS": "default",
}


class Told(NamedTuple):
    """What a tracker has of a run."""

    config: dict[str, Any]
    curve: Callable[[str], Curve]


@pytest.fixture(scope="module")
def tracked(tiny_model: Path, notes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a run was made with all trackers that are installed."""
    folder = tmp_path_factory.mktemp("tracked")
    named = {"model": tiny_model, "dataset": notes, "output_dir": folder / "run", "trackers": ",".join(NAMES)}
    named |= {"max_steps": 4, "eval_every": 2, "log_every": 3, "effective_batch_size": 16, "micro_batch_size": 8}
    named |= {"max_length": 64}
    flags = [f"--{name}={value}" for name, value in named.items()]
    where = {"MLFLOW_TRACKING_URI": f"file://{folder / 'mlflow'}", "TRACKIO_DIR": str(folder / "trackio")}
    done = subprocess.run(
        [sys.executable, "-m", "recipes.clinical_classification", *flags],
        env={**os.environ, **OFFLINE, **where, "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stdout
    return folder


def of_tensorboard(folder: Path) -> Told:
    import yaml
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    place = folder / "run" / "hf-accum"
    events = EventAccumulator(str(place)).Reload()
    (file,) = place.glob("*/hparams.yml")
    config = yaml.safe_load(file.read_text())
    return Told(config, lambda name: [(event.step, event.value) for event in events.Scalars(name)])


def of_wandb(folder: Path) -> Told:
    messages = importlib.import_module("wandb.proto.wandb_internal_pb2")
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    config: dict[str, Any] = {}
    points: list[tuple[int, dict[str, Any]]] = []
    for data in _records(file.read_bytes()):
        record: Any = messages.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        assert kind not in ("output", "output_raw")  # the console, where rows may be quoted
        if kind in ("config", "run"):
            updates = (record.config if kind == "config" else record.run.config).update
            config |= {one.key or ".".join(one.nested_key): json.loads(one.value_json) for one in updates}
        if kind == "history":
            values = {one.key or "/".join(one.nested_key): json.loads(one.value_json) for one in record.history.item}
            points.append((values["_step"], values))
    return Told(config, lambda name: [(step, values[name]) for step, values in points if name in values])


def _records(content: bytes) -> list[bytes]:
    """Those of a log file as LevelDB has them, in blocks of 32 KiB, behind a header of 7 bytes."""
    records, place, parts = [], 7, []
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        size, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        parts.append(content[place + 7 : place + 7 + size])
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            records.append(b"".join(parts))
            parts = []
    return records


def of_mlflow(folder: Path) -> Told:
    client = importlib.import_module("mlflow").MlflowClient(f"file://{folder / 'mlflow'}")
    experiment = client.get_experiment_by_name("hf-accum")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    history = client.get_metric_history
    return Told(run.data.params, lambda name: [(one.step, one.value) for one in history(run.info.run_id, name)])


def of_trackio(folder: Path) -> Told:
    (run,) = importlib.import_module("trackio").Api().runs("hf-accum")
    lines = importlib.import_module("trackio.sqlite_storage").SQLiteStorage.get_logs("hf-accum", run.name)
    return Told(run.config, lambda name: [(line["step"], line[name]) for line in lines if name in line])


READERS = {"tensorboard": of_tensorboard, "wandb": of_wandb, "mlflow": of_mlflow, "trackio": of_trackio}


@pytest.mark.filterwarnings("ignore")  # their own
@pytest.mark.parametrize("name", READERS)
def test_configuration_and_figures_arrive(name: str, tracked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name not in NAMES:
        pytest.skip(f"{name} is not installed")
    for variable, value in {**OFFLINE, "TRACKIO_DIR": str(tracked / "trackio")}.items():
        monkeypatch.setenv(variable, value)
    told = READERS[name](tracked)
    assert str(told.config["lora.rank"]) == "16"
    assert told.config["lora.target_modules"] == "all-linear"
    assert told.config["dataset"].endswith("notes0")
    lines = metrics_of(tracked / "run")
    for key in ("loss", "grad_norm", "learning_rate", "num_tokens"):
        curve = told.curve(f"train/{key}")
        assert [step for step, _ in curve] == [1, 2, 3, 4]
        assert [value for _, value in curve] == pytest.approx([line[key] for line in lines], rel=1e-6)
    figures = json.loads((tracked / "run" / "evaluation.json").read_text())
    assert [step for step, _ in told.curve("eval/macro_f1")] == [2, 4]
    assert told.curve("eval/macro_f1")[-1][1] == pytest.approx(figures["macro_f1"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.skipif("mlflow" not in NAMES, reason="mlflow is not installed")
def test_one_that_does_not_start_is_said_before_the_training(tiny_model: Path, notes: Path, tmp_path: Path) -> None:
    named = {"model": tiny_model, "dataset": notes, "output_dir": "run", "trackers": "tensorboard,mlflow"}
    flags = [f"--{name}={value}" for name, value in named.items()]
    done = subprocess.run(
        [sys.executable, "-m", "recipes.clinical_classification", *flags, "--max_length=64"],
        env={**os.environ, "MLFLOW_TRACKING_URI": "nowhere://x", "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "error: --trackers mlflow: does not start (" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
