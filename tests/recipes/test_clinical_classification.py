"""The recipe on a user's own data: files, problems, evaluation, checkpoints, mistakes."""

import csv
import json
import math
import shlex
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from launching import ROOT, launch, run
from run_files import logits_of, metrics_of
from sklearn.metrics import accuracy_score, f1_score
from transformers import AutoModelForSequenceClassification

from hf_accum.distributed.ranks import OneRank
from recipes.clinical_classification import ClinicalClassificationConfig, open_data
from recipes.embedded.icd import icd_chapters
from recipes.embedded.synopses import clinical_synopses

Recipe = Callable[..., Path]
SPLITS = ("train-", "test-")

METRICS_KEYS = [
    *("step", "epoch", "loss", "grad_norm", "learning_rate", "num_examples", "num_items", "num_tokens"),
    *("num_padded_tokens", "num_micro_batches", "step_seconds", "peak_memory_bytes", "num_oom_replays"),
    "window_digest",
    "data_wait_share",
]


def rows_of(notes: Path) -> list[dict[str, object]]:
    return [json.loads(line) for file in sorted(notes.iterdir()) for line in file.read_text().splitlines()]


def held_out_of(notes: Path, **flags: object) -> list[dict[str, object]]:
    """The rows that a run with these flags holds out."""
    config = ClinicalClassificationConfig(dataset=str(notes), **flags)  # type: ignore[arg-type]
    data = open_data(config, OneRank())
    return [row for row in rows_of(notes) if data.is_held_out(row, True)]


def test_a_run_leaves_what_the_contract_says(recipe: Recipe) -> None:
    folder = recipe(num_epochs=6, learning_rate=0.01, effective_batch_size=16, log_every=4)
    assert sorted(p.name for p in folder.iterdir()) == [
        "adapter",
        "config.yaml",
        "errors.jsonl",
        "evaluation.json",
        "metrics.jsonl",
        "predictions.jsonl",
        "run.json",
        "tuning.json",
    ]
    metrics = metrics_of(folder)
    assert [m["step"] for m in metrics] == list(range(1, 6 * 9 + 1))
    assert all(list(m) == METRICS_KEYS for m in metrics)
    assert sum(m["num_examples"] for m in metrics) == 6 * 134
    assert all(m["num_items"] == m["num_examples"] for m in metrics)
    assert all(0 < m["num_tokens"] <= m["num_padded_tokens"] for m in metrics)
    assert metrics[-1]["epoch"] == 5
    assert metrics[0]["learning_rate"] == 0  # warm-up starts there
    assert max(m["learning_rate"] for m in metrics) == 0.01
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert evaluation["num_examples"] == 16
    assert set(evaluation["per_class"]) == {"eye", "heart", "muscle"}
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["labels"] == ["eye", "heart", "muscle"]
    assert config["lora"]["rank"] == 16


def test_a_run_learns(recipe: Recipe) -> None:
    """All weights, since adapters have little to adapt in random ones."""
    folder = recipe("--lora.rank=0", num_epochs=12, learning_rate=0.002, effective_batch_size=8, eval_fraction=0.3)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert evaluation["num_examples"] == 45
    assert evaluation["accuracy"] > 0.8


def test_the_figures_are_those_of_the_saved_adapter(recipe: Recipe, notes: Path) -> None:
    folder = recipe(num_epochs=3, learning_rate=0.01, group_column="patient")
    evaluation = json.loads((folder / "evaluation.json").read_text())
    held_out = held_out_of(notes, group_column="patient")
    patients = {row["patient"] for row in held_out}
    assert [row for row in rows_of(notes) if row["patient"] in patients] == held_out
    predicted = logits_of(folder, [str(row["text"]) for row in held_out], 3).argmax(-1).tolist()
    truth = [["eye", "heart", "muscle"].index(str(row["label"])) for row in held_out]
    assert evaluation["num_examples"] == len(held_out)
    assert evaluation["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    assert evaluation["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro"))


def test_full_fine_tuning_saves_a_model_that_names_its_labels(recipe: Recipe) -> None:
    folder = recipe(**{"lora.rank": 0}, max_steps=2)
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model")
    assert model.config.id2label == {0: "eye", 1: "heart", 2: "muscle"}
    assert not (folder / "adapter").exists()


def test_several_labels_by_text_from_csv(recipe: Recipe, notes: Path, tmp_path: Path) -> None:
    file = tmp_path / "notes.csv"
    with file.open("w", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(["note", "findings"])
        for number, row in enumerate(rows_of(notes)):
            findings = [str(row["label"])] + (["long"] if len(str(row["text"])) > 90 else [])
            writer.writerow([row["text"], "" if number == 7 else " | ".join(findings)])
    folder = recipe(
        dataset=file,
        problem="multi_label_classification",
        text_column="note",
        label_column="findings",
        num_epochs=12,
        learning_rate=0.003,
        effective_batch_size=16,
        **{"lora.rank": 0},
    )
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert set(evaluation["per_class"]) == {"eye", "heart", "long", "muscle"}
    assert evaluation["macro_auroc"] > 0.75
    assert all(m["num_items"] == 4 * m["num_examples"] for m in metrics_of(folder))


def test_a_number_by_text(recipe: Recipe, notes: Path, tmp_path: Path) -> None:
    file = tmp_path / "notes.jsonl"
    lines = [{"text": row["text"], "label": len(str(row["text"])) / 100} for row in rows_of(notes)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    how = {"num_epochs": 12, "learning_rate": 0.003, "effective_batch_size": 16, "lora.rank": 0}
    folder = recipe(dataset=file, problem="regression", **how)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert evaluation["mse"] < 0.1
    assert evaluation["pearson"] > 0.5


def test_a_split_of_its_own_to_evaluate_on(recipe: Recipe, notes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = rows_of(notes)
    for split, part in (("train", rows[:100]), ("validation", rows[100:])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    done = recipe(dataset=folder, eval_split="validation", effective_batch_size=30)
    assert json.loads((done / "evaluation.json").read_text())["num_examples"] == 50
    assert [m["num_examples"] for m in metrics_of(done)] == [30, 30, 30, 10]


@pytest.mark.slow
def test_shards_use_every_example_once_on_two_processes(
    recipe: Recipe, tiny_model: Path, notes: Path, tmp_path: Path
) -> None:
    """Three files of 90, 10 and 50 rows on two ranks: windows stay full to the end."""
    how = {"stream_split": "shards", "effective_batch_size": 25, "num_epochs": 2, "trackers": "tensorboard"}
    on_one = recipe(**how)
    on_two = tmp_path / "2"
    done = launch(
        *("-m", "recipes.clinical_classification", f"--model={tiny_model}", f"--dataset={notes}"),
        *("--max_length=64", "--micro_batch_size=8", f"--output_dir={on_two}"),
        *(f"--{name}={value}" for name, value in how.items()),
        num_processes=2,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    digests = []
    for folder in (on_one, on_two):
        assert list(folder.rglob("events.out.tfevents*"))
        assert [m["num_examples"] for m in metrics_of(folder)] == [25, 25, 25, 25, 25, 9] * 2
        epochs = [metrics_of(folder)[i : i + 6] for i in (0, 6)]
        totals = {sum(int(m["window_digest"][:16], 16) for m in epoch) % 2**64 for epoch in epochs}
        assert len(totals) == 1  # the digest is a sum: an epoch's examples are the same in any order
        digests.append(totals.pop())
    assert digests[0] == digests[1]


def test_the_best_checkpoint_is_the_result_and_training_ends_early(recipe: Recipe, notes: Path) -> None:
    # A learning rate that wrecks the model: the best evaluation is an early one.
    folder = recipe(
        num_epochs=10,
        learning_rate=5.0,
        lr_scheduler="constant",
        eval_every=2,
        best_metric="loss",
        early_stopping_patience=2,
        save_every=4,
        effective_batch_size=16,
    )
    steps = len(metrics_of(folder))
    assert steps < 90
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert evaluation["step"] == steps - 4
    kept = sorted(int(p.name.removeprefix("step-")) for p in (folder / "checkpoints").iterdir())
    saved = sorted({*range(4, steps + 1, 4), steps - 4})
    assert kept == sorted({*saved[-2:], steps - 4})  # the last two, and the best one
    best = folder / "checkpoints" / f"step-{steps - 4:08}"
    texts = ["muscle weakness", "cataract"]
    assert torch.equal(logits_of(best, texts, 3), logits_of(folder, texts, 3))


@pytest.mark.by_hand
def test_trains_in_bf16(tiny_model: Path, notes: Path, tmp_path: Path) -> None:
    done = launch(
        *("--mixed_precision", "bf16", "-m", "recipes.clinical_classification", f"--model={tiny_model}"),
        *(f"--dataset={notes}", "--max_length=64", "--num_epochs=4", "--learning_rate=0.01"),
        *("--effective_batch_size=16", f"--output_dir={tmp_path / 'run'}"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "precision bf16" in done.stdout
    metrics = metrics_of(tmp_path / "run")
    assert metrics[-1]["loss"] < metrics[0]["loss"]


def test_an_earlier_run_is_moved_aside(recipe: Recipe, tmp_path: Path) -> None:
    first = recipe(max_steps=1, output_dir=tmp_path / "run")
    digest = metrics_of(first)[0]["window_digest"]
    recipe(max_steps=1, output_dir=tmp_path / "run", seed=1)
    assert metrics_of(tmp_path / "run-earlier-1")[0]["window_digest"] == digest
    assert metrics_of(tmp_path / "run")[0]["window_digest"] != digest


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"text_column": "note"},
            "has no column 'note': it has text, label, patient; --text_column names another one",
        ),
        (
            {"label_column": "diagnosis"},
            "has no column 'diagnosis': it has text, label, patient; --label_column names another one",
        ),
        ({"train_split": "training"}, "has no split 'training': it has train"),
        ({"labels": "[eye,heart]"}, "label 'muscle' is out of range: it is none of eye, heart"),
        ({"problem": "regression"}, "row 1: field 'label': 'heart' is not a number"),
        ({"max_length": 128}, "--max_length 128: has to be at most 64"),
        ({"model": "no/such-model"}, "--model no/such-model: has to be a local folder, or an id of the hub"),
        ({"dataset": "no/such-data"}, "dataset 'no/such-data': neither a local file"),
        ({"dataset": "notes.txt"}, "dataset 'notes.txt'"),
        (
            {"best_metric": "f1", "eval_every": 1},
            "--best_metric f1: has to be one of accuracy, expected_calibration_error, loss, macro_auroc",
        ),
        ({"extra_metrics": "[no_such_metric]"}, "has to be left out without --trust_remote_code: metrics of the hub"),
        (
            {"extra_metrics": "[no_such_metric]", "trust_remote_code": "true"},
            "metric 'no_such_metric': neither shipped",
        ),
        ({"eval_split": "train"}, "--eval_split train: has to be another one than --train_split"),
        ({"group_column": "ward"}, "has no column 'ward': it has text, label, patient"),
        ({"lora.target_modules": "[no_such_layer]"}, "--lora.target_modules ['no_such_layer']: has to match"),
    ],
)
def test_a_mistake_is_one_clear_message_before_training(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: dict[str, object], message: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        recipe(**flags, output_dir=tmp_path / "run")
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_bad_rows_are_skipped_and_counted_on_request(
    recipe: Recipe, notes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "notes.jsonl"
    lines = [json.dumps(row).encode() for row in rows_of(notes)]
    lines[3:3] = [b'{"text": "caf\xe9", "label": "eye"}', b"{broken", b'{"text": "  ", "label": "eye"}']
    lines[90:90] = [b'{"text": "no label here"}', b'{"text": "x", "label": NaN}']
    file.write_bytes(b"\n".join(lines))
    with pytest.raises(SystemExit):
        recipe(dataset=file)
    assert "notes.jsonl, row 4: not UTF-8" in capsys.readouterr().err
    folder = recipe(dataset=file, on_bad_row="skip", effective_batch_size=25)
    assert sum(m["num_examples"] for m in metrics_of(folder)) == 134
    said = capsys.readouterr().out
    for reason in ("not UTF-8", "not JSON", "empty text", "no such column", "null or NaN"):
        assert any("left out: 1 bad rows" in line and reason in line for line in said.splitlines()), reason


@pytest.mark.by_hand
def test_the_readme_s_main_job_beats_both_baselines_by_three_points(tmp_path: Path) -> None:
    (line,) = [line for line in (ROOT / "README.md").read_text().splitlines() if "'.[demo]' && " in line]
    command = shlex.split(line.partition(" && ")[2])
    assert command[:2] == ["accelerate", "launch"]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *command[2:]]
    done = run([*launcher, f"--output_dir={tmp_path / 'run'}"], timeout=1200, OMP_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr[-3000:]
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluation["num_examples"] == 1483
    for figure, best_baseline in (("accuracy", 0.734), ("macro_f1", 0.733)):  # TF-IDF, as `baselines` tells
        assert evaluation[figure] > best_baseline + 0.03


def test_class_weights_count_in_the_window(recipe: Recipe, notes: Path) -> None:
    counts = Counter(str(row["label"]) for row in rows_of(notes))
    counts -= Counter(str(row["label"]) for row in held_out_of(notes))
    weights = {label: 134 / (3 * n) for label, n in counts.items()}
    folder = recipe(class_weights="balanced", effective_batch_size=134)
    (metrics,) = metrics_of(folder)
    assert metrics["num_items"] == pytest.approx(sum(weights[label] * n for label, n in counts.items()))
    assert math.isfinite(metrics["loss"])
    listed = [weights[label] for label in ("eye", "heart", "muscle")]
    same = recipe(class_weights=str(listed), labels="eye,heart,muscle", effective_batch_size=134)
    assert metrics_of(same)[0]["loss"] == pytest.approx(metrics["loss"], rel=1e-6)


def test_the_embedded_synopses_are_what_their_description_says() -> None:
    import pyarrow.parquet as pq

    rows = pq.read_table(clinical_synopses()).to_pylist()
    assert len(rows) == 8234
    shares = {name: sum(r["inheritance"] == name for r in rows) / len(rows) for name in ("recessive", "dominant")}
    assert shares["recessive"] == pytest.approx(0.51, abs=0.005)
    assert shares["dominant"] == pytest.approx(0.40, abs=0.01)
    assert all(r["text"] and r["inheritance"] == r["modes"][0] for r in rows)
    assert len({r["id"] for r in rows}) == 8234
    by_id = {r["id"]: r for r in rows}
    assert "Tonic seizure" in by_id["OMIM:619340"]["text"]
    assert by_id["OMIM:619340"]["inheritance"] == "dominant"


@pytest.mark.parametrize(("salt", "num_held_out"), [("a", 1483), ("d", 1641)])
def test_the_embedded_diagnoses_are_split_by_category(salt: str, num_held_out: int) -> None:
    import pyarrow.parquet as pq

    files = sorted(Path(icd_chapters(salt)).iterdir())
    train, test = ([r for f in files if f.name.startswith(of) for r in pq.read_table(f).to_pylist()] for of in SPLITS)
    assert (len(train), len(test)) == (8133 - num_held_out, num_held_out)
    assert len({row["text"] for row in [*train, *test]}) == 8133
    assert not {row["category"] for row in train} & {row["category"] for row in test}
    assert {row["chapter"] for row in train} == {row["chapter"] for row in test}
    assert len({row["chapter"] for row in train}) == 21
    by_id = {row["id"]: row for row in [*train, *test]}
    assert by_id["T23.449S"]["category"] == "T23"
    assert by_id["T23.449S"]["text"].startswith("Corrosion of unspecified degree")
    assert by_id["T23.449S"]["chapter"].startswith("Injury, poisoning")


SLOW_CONFIGS = {"cpu": pytest.mark.by_hand, "cpu_2_processes": pytest.mark.slow}


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(path, id=path.stem, marks=SLOW_CONFIGS.get(path.stem, []))
        for path in sorted((ROOT / "accelerate_configs").glob("*.yaml"))
    ],
)
def test_every_shipped_accelerate_config_starts_the_recipe(
    config: Path, tiny_model: Path, notes: Path, tmp_path: Path
) -> None:
    text = config.read_text()
    assert f"accelerate launch --config_file accelerate_configs/{config.name}" in text
    if "gpu" in config.stem:
        from accelerate.commands.config.config_args import load_config_from_file
        from accelerate.commands.launch import _validate_launch_command, launch_command_parser

        parsed = load_config_from_file(str(config))
        assert parsed.mixed_precision == "bf16"
        arguments = launch_command_parser().parse_args(["--config_file", str(config), "script.py"])
        arguments, _, _ = _validate_launch_command(arguments)
        assert arguments.multi_gpu == (config.stem == "multi_gpu")
        assert arguments.num_processes == (2 if config.stem == "multi_gpu" else 1)
        return
    done = run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)),
            *("-m", "recipes.clinical_classification", f"--model={tiny_model}", f"--dataset={notes}"),
            *("--max_length=64", "--max_steps=2", f"--output_dir={tmp_path / 'run'}"),
        ]
    )
    assert done.returncode == 0, done.stderr[-3000:]
    num_processes = 2 if "2_processes" in config.stem else 1
    assert f"ranks      {num_processes} on cpu" in done.stdout
    assert len(metrics_of(tmp_path / "run")) == 2


def test_with_full_determinism_the_same_command_gives_the_same_bits(recipe: Recipe) -> None:
    """Dropout and all; what has been learned of the device in between changes nothing."""
    how = {"max_steps": 12, "effective_batch_size": 16, "full_determinism": "true", "dropout": 0.1}
    try:
        first = recipe(**how)
        recipe(max_steps=12, effective_batch_size=16)
        second = recipe(**how)
    finally:
        torch.use_deterministic_algorithms(False)
    runs = [[(m["loss"], m["grad_norm"]) for m in metrics_of(folder)] for folder in (first, second)]
    assert runs[0] == runs[1]
    name = "adapter/adapter_model.safetensors"
    assert (first / name).read_bytes() == (second / name).read_bytes()
