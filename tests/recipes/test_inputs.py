"""What comes into a run: each mistake is one message before the long work, and no secret comes out."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_files import metrics_of
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from recipes.clinical_classification import main

Recipe = Callable[..., Path]
TOKEN = "hf_" + "aB3dE6gH9jK2mN5pQ8" * 2


def refused(capsys: pytest.CaptureFixture[str], recipe: Recipe, *flags: str, **named: Any) -> str:
    """The one message of a run that ends by a mistake."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        recipe(*flags, **named)
    said = capsys.readouterr().err
    assert ended.value.code == 2, said
    assert "Traceback" not in said
    (message,) = [line for line in said.splitlines() if line.startswith("error: ")]
    return message


def classifier(tiny_model: Path, folder: Path, names: list[str]) -> Path:
    """The tiny model with a head that tells classes of these names."""
    shutil.copytree(tiny_model, folder)
    model = AutoModelForSequenceClassification.from_pretrained(
        tiny_model, id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)}
    )
    model.save_pretrained(folder)
    return folder


# Before the long work


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"output_dir": "/proc/nowhere"}, "--output_dir /proc/nowhere: has to be a folder to write in"),
        ({"output_dir": "a" * 300}, "File name too long"),
        ({"output_dir": "file"}, "has to be a folder, it is a file"),
        ({"output_dir": "file/run"}, "has to be a folder to write in"),
        ({"output_dir": "full"}, "full: has to be new, empty, or an earlier run's folder; it holds letter.txt"),
        ({"max_length": 65}, "--max_length 65: has to be at most 64"),
        ({"model": "no/such-model"}, "--model no/such-model: has to be a local folder"),
        ({"lora.target_modules": "[no_such_layer]"}, "--lora.target_modules ['no_such_layer']: has to match"),
        ({"revision": "main"}, "--revision main: has to be left out with a local folder"),
    ],
)
def test_what_needs_no_data_is_said_before_the_data_is_read(
    recipe: Recipe,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: dict[str, Any],
    said: str,
) -> None:
    def opened(*_: object, **__: object) -> None:
        raise AssertionError("the data was read first")

    monkeypatch.setattr("hf_accum.tasks.text_classification.data.open_labelled_texts", opened)
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").touch()
    before = sorted(tmp_path.rglob("*"))
    assert said in refused(capsys, recipe, **flags)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"dataset": "empty.jsonl"}, "the dataset has 0 usable examples"),
        ({"dataset": "empty.csv"}, "the dataset has 0 usable examples"),
        ({"dataset": "empty"}, "doesn't contain any data files"),
        ({"dataset": "notes", "dataset_revision": "abc"}, "--dataset_revision abc: has to be left out"),
        ({"dataset": "script"}, "has a loading script, script.py, which is code and is not run"),
        ({"dataset": "outside"}, "names a file outside of it"),
        ({"text_column": "note"}, "has no column 'note'"),
    ],
)
def test_a_dataset_that_cannot_be_used_is_said_before_the_model_is_loaded(
    recipe: Recipe,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    notes: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: dict[str, Any],
    said: str,
) -> None:
    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr("hf_accum.models.loading.load_model", loaded)
    for name in ("empty.jsonl", "empty.csv"):
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    for name in ("notes", "script", "outside"):
        shutil.copytree(notes, tmp_path / name)
    (tmp_path / "script" / "script.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')")
    (tmp_path / "outside" / "train-9.jsonl").symlink_to(notes / "train-0.jsonl")
    assert said in refused(capsys, recipe, **flags)
    assert not (tmp_path / "trace").exists()


def test_an_empty_dataset_of_which_no_pass_is_made_first(
    recipe: Recipe, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "empty.jsonl").touch()
    how = {"dataset": tmp_path / "empty.jsonl", "num_epochs": "null", "max_steps": 3, "labels": "a,b"}
    assert "the dataset has no usable example" in refused(capsys, recipe, **how)


# The model that belongs to the data


def test_a_head_of_the_same_labels_in_another_order_is_refused_with_the_way_out(
    recipe: Recipe, capsys: pytest.CaptureFixture[str], tiny_model: Path, tmp_path: Path
) -> None:
    """It would be taught that what it knows as one class is another."""
    model = classifier(tiny_model, tmp_path / "model", ["muscle", "heart", "eye"])
    said = refused(capsys, recipe, model=model)
    assert "its head tells 'muscle', 'heart', 'eye', in this order, and the labels are eye, heart, muscle" in said
    assert "give --labels in the order of the head" in said
    folder = recipe(model=model, labels="muscle,heart,eye", max_steps=1)
    assert "new, without" not in capsys.readouterr().out
    assert (folder / "adapter").is_dir()


def test_a_head_of_other_labels_is_refused(
    recipe: Recipe, capsys: pytest.CaptureFixture[str], tiny_model: Path, tmp_path: Path
) -> None:
    other = classifier(tiny_model, tmp_path / "other", ["bad", "so-so", "good"])
    assert "give the model that it was made from" in refused(capsys, recipe, model=other)
    fewer = classifier(tiny_model, tmp_path / "fewer", ["eye", "heart"])
    assert "is (2,) there, and has to be (3,)" in refused(capsys, recipe, model=fewer)
    unnamed = classifier(tiny_model, tmp_path / "unnamed", ["LABEL_0", "LABEL_1", "LABEL_2"])
    assert recipe(model=unnamed, max_steps=1)


def test_a_tokenizer_of_another_model_is_refused(
    recipe: Recipe, capsys: pytest.CaptureFixture[str], tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens(["neologism"])
    tokenizer.save_pretrained(tmp_path / "model")
    assert "knows 30523 tokens, the model 30522: they do not belong" in refused(
        capsys, recipe, model=tmp_path / "model"
    )


def test_a_malicious_model_runs_nothing(
    recipe: Recipe, capsys: pytest.CaptureFixture[str], tiny_model: Path, tmp_path: Path
) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "trace",)

    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save({"evil": Evil()}, tmp_path / "model" / "pytorch_model.bin")
    assert "--allow_pickle_weights" in refused(capsys, recipe, model=tmp_path / "model")
    assert "cannot be read" in refused(capsys, recipe, "--allow_pickle_weights", model=tmp_path / "model")
    assert not (tmp_path / "trace").exists()


# Data that changes


def test_a_dataset_that_changes_between_two_passes_ends_the_run(
    recipe: Recipe,
    capsys: pytest.CaptureFixture[str],
    notes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from hf_accum.run.log import RunLog

    shutil.copytree(notes, tmp_path / "notes")
    step = RunLog.step

    def step_and_change(self: RunLog, window: Any, *rest: Any) -> None:
        step(self, window, *rest)
        if window.window.step == 3:
            with (tmp_path / "notes" / "train-1.jsonl").open("a") as file:
                file.write(json.dumps({"text": "new", "label": "eye", "patient": 1000}) + "\n")

    monkeypatch.setattr(RunLog, "step", step_and_change)
    said = refused(capsys, recipe, dataset=tmp_path / "notes", num_epochs=50)
    assert "train-1.jsonl: was changed while the run reads it" in said
    # What was trained until then is saved.
    (folder,) = (path for path in tmp_path.glob("run-*") if path.is_dir())
    last = metrics_of(folder)[-1]["step"]
    assert last >= 3
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"step-{last:08}"]


# What a run says


def test_fewer_examples_than_one_window_are_used_and_said(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    folder = recipe(effective_batch_size=1000, num_epochs=2)
    assert [m["num_items"] for m in metrics_of(folder)] == [134, 134]
    said = capsys.readouterr().out
    assert "a pass has fewer examples than one window: it is one window, used with its true weight" in said


def test_a_label_that_no_row_has_is_said(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    recipe(labels="ear,eye,heart,muscle", max_steps=1)
    assert "no row to train on has the label ear\n" in capsys.readouterr().out


@pytest.mark.slow
def test_longer_texts_than_the_model_has_positions_for_are_cut_and_counted(
    recipe: Recipe, capsys: pytest.CaptureFixture[str], notes: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in (notes / "train-0.jsonl").read_text().splitlines()]
    rows[0]["text"] = "weakness; " * 100_000
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe(dataset=tmp_path / "long.jsonl")
    found = re.search(r"truncated: \d+ of 81 examples, by ([\d,]+) tokens", capsys.readouterr().out)
    assert found is not None
    assert int(found[1].replace(",", "")) >= 200_000 - 64


# Secrets


@pytest.mark.parametrize("flag", ["model", "dataset", "output_dir", "trackers", "text_column", "lora.target_modules"])
@pytest.mark.parametrize(
    "value", [f"me/{TOKEN}", "https://me:s3cr3t@example.org/x", "https://example.org/x?token=s3cr3t"]
)
def test_a_flag_with_a_secret_is_refused_and_not_repeated(
    recipe: Recipe, capsys: pytest.CaptureFixture[str], tmp_path: Path, flag: str, value: str
) -> None:
    said = refused(capsys, recipe, **{flag: value})
    assert f"--{flag} ***: has to be without tokens and passwords" in said
    (tmp_path / "run.yaml").write_text(
        f"seed: 1\n{flag}: {value}\n" if "." not in flag else f"lora:\n  rank: {value}\n"
    )
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["--config", str(tmp_path / "run.yaml")])
    told = said + "".join(capsys.readouterr())
    assert TOKEN not in told
    assert "s3cr3t" not in told


def test_secrets_of_the_environment_are_in_nothing_that_a_run_leaves(
    recipe: Recipe, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, TOKEN)
    recipe("--trackers=tensorboard", max_steps=2, save_every=1)
    assert refused(capsys, recipe, dataset=f"no/{TOKEN}").startswith("error: --dataset ***")
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert any("events.out.tfevents" in file.name for file in written)
    assert any(file.name == "config.yaml" for file in written)
    for file in written:
        assert TOKEN.encode() not in file.read_bytes(), file
