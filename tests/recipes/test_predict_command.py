"""`hf-accum predict`: what a run tells of rows is what its model tells of each alone, and no row is lost or twice."""

import csv
import errno
import fcntl
import gzip
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from every_recipe import run_of
from launching import launch
from PIL import Image
from plain_peft import load_adapter
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from hf_accum.accumulation.time_model import UNLEARNED
from hf_accum.cli.main import main
from hf_accum.cli.prediction import open_predictions
from hf_accum.cli.recipes import recipe_of

Recipe = Callable[..., Path]
MADE = {"max_steps": 4, "effective_batch_size": 16, "learning_rate": 0.01}


def written(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def predict(run: Path, dataset: object, output: Path, *flags: str) -> list[dict[str, Any]]:
    main(["predict", str(run), f"--dataset={dataset}", f"--output={output}", *flags])
    assert not output.with_name(f"{output.name}.partial").exists()
    return written(output) if output.suffix == ".jsonl" else []


def pixels_of(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"pooling": "mean", "temperature_scaling": True},
        {"problem": "multi_label_classification", "tune_thresholds": True},
        {"long_texts": "windows", "max_length": 16, "window_overlap": 4, "max_windows": 6},
    ],
    ids=["one label", "pooled, with a temperature", "several labels", "windows"],
)
def test_texts_get_what_the_run_told_of_them(recipe: Recipe, tmp_path: Path, how: dict[str, Any]) -> None:
    run = recipe(**MADE, **how)
    held_out = written(run / "errors.jsonl")
    data = tmp_path / "texts.jsonl"
    rows = [{"note": row["text"], "extra": {"place": place}} for place, row in enumerate(held_out)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = predict(run, data, tmp_path / "one.jsonl", "--text_column=note", "--micro_batch_size=1")
    many = predict(run, data, tmp_path / "many.jsonl", "--text_column=note", "--micro_batch_size=7")
    assert [{"note": row["note"], "extra": row["extra"]} for row in told] == rows
    for one, other, expected in zip(told, many, held_out, strict=True):
        assert one["prediction"] == other["prediction"] == expected["prediction"]
        assert one["probabilities"] == pytest.approx(expected["probabilities"], abs=2e-6)
        assert other["probabilities"] == pytest.approx(expected["probabilities"], abs=2e-6)


def test_a_number_and_a_pair_and_a_template(recipe: Recipe, notes: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (notes / "train-0.jsonl").read_text().splitlines()]
    data = tmp_path / "numbers.jsonl"
    data.write_text("".join(json.dumps(row | {"label": len(row["text"]) / 30}) + "\n" for row in rows))
    number = recipe(**MADE, dataset=data, problem="regression", group_column="patient")
    told = predict(number, data, tmp_path / "out.jsonl")
    by_text = {row["text"]: row["prediction"] for row in written(number / "errors.jsonl")}
    assert sum(row["text"] in by_text for row in told) >= len(by_text)
    for row in told:
        assert "probabilities" not in row
        if row["text"] in by_text:
            assert row["prediction"] == pytest.approx(by_text[row["text"]], abs=1e-5)
            assert len(str(row["prediction"]).lstrip("-0.").partition("e")[0]) <= 10  # digits of float32, no more
    template = recipe(**MADE, text_template="{patient}: {text}", group_column="patient")
    told = predict(template, notes, tmp_path / "template.jsonl")
    texts = {row["text"]: row["prediction"] for row in written(template / "errors.jsonl")}
    assert all(texts.get(f"{r['patient']}: {r['text']}", r["prediction"]) == r["prediction"] for r in told)


def test_the_formats_hold_the_same(
    recipe: Recipe, notes: Path, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = recipe(**MADE)
    first = predict(run, notes, tmp_path / "out.jsonl")
    assert [row["text"] for row in first] == [
        json.loads(line)["text"] for file in sorted(notes.iterdir()) for line in file.read_text().splitlines()
    ]
    predict(run, notes, tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["prediction"] for row in rows] == [row["prediction"] for row in first]
    assert [float(row["probabilities.heart"]) for row in rows] == [row["probabilities"]["heart"] for row in first]
    predict(run, notes, tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == first
    bare = [{name: row[name] for name in ("text", "patient")} for row in first]
    stdin = tmp_path / "stdin"
    stdin.write_text("text,patient\n" + "".join(f"{row['text']},{row['patient']}\n" for row in bare))
    with stdin.open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        piped = predict(run, "-", tmp_path / "piped.jsonl")
    assert [row["probabilities"] for row in piped] == [row["probabilities"] for row in first]
    packed = tmp_path / "packed.gz"
    packed.write_bytes(gzip.compress(stdin.read_bytes()))
    with packed.open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        with pytest.raises(SystemExit):
            predict(run, "-", tmp_path / "none.jsonl")
    assert "--dataset -: is compressed" in capsys.readouterr().err


def test_entities_are_where_plain_transformers_finds_them(tmp_path: Path, accelerator: object) -> None:
    run = run_of("clinical_ner", tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "clinical_ner-data" / "train-2.jsonl").read_text().splitlines()]
    data = tmp_path / "words.jsonl"
    data.write_text("".join(json.dumps({"tokens": row["tokens"]}) + "\n" for row in rows))
    told = predict(run, data, tmp_path / "words-out.jsonl")
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": " ".join(row["tokens"])}) + "\n" for row in rows))
    of_texts = predict(run, texts, tmp_path / "texts-out.jsonl", "--micro_batch_size=1")
    model = load_adapter(AutoModelForTokenClassification, run / "adapter", tmp_path / "clinical_ner-model")
    tokenizer = AutoTokenizer.from_pretrained(run / "adapter")
    num_short = 0
    for row, other in zip(told, of_texts, strict=True):
        text = " ".join(row["tokens"])
        assert row["prediction"] == other["prediction"]
        assert all(text[one["start"] : one["end"]] == one["text"] for one in row["prediction"])
        assert len(row["prediction_tags"]) == len(row["tokens"])
        if len(row["tokens"]) <= 14:  # in one part
            num_short += 1
            inputs = tokenizer(row["tokens"], is_split_into_words=True, return_tensors="pt")
            with torch.no_grad():
                chosen = model(**inputs).logits[0].argmax(-1)
            first = {word: place for place, word in reversed(list(enumerate(inputs.word_ids()))) if word is not None}
            names = [model.config.id2label[int(chosen[first[word]])] for word in range(len(row["tokens"]))]
            assert row["prediction_tags"] == names
    assert num_short > 5


def test_vectors_are_those_of_plain_transformers(tmp_path: Path, accelerator: object) -> None:
    run = run_of("term_retrieval", tmp_path)
    data = tmp_path / "queries.jsonl"
    data.write_text("".join(json.dumps({"term": f"w{place} w3"}) + "\n" for place in range(20)))
    told = predict(run, data, tmp_path / "out.jsonl")
    model = load_adapter(AutoModel, run / "adapter", tmp_path / "term_retrieval-model")
    tokenizer = AutoTokenizer.from_pretrained(run / "adapter")
    for row in told:
        with torch.no_grad():
            states = model(**tokenizer(row["term"], return_tensors="pt")).last_hidden_state[0].mean(0)
        assert row["term_embedding"] == pytest.approx((states / states.norm()).tolist(), abs=1e-5)
        assert row.keys() == {"term", "term_embedding"}


def test_texts_are_written_as_plain_transformers_does(
    tmp_path: Path, accelerator: object, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of("medical_lm", tmp_path, max_length=48)
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps({"question": " ".join(["w1"] * n)}) + "\n" for n in range(1, 9)))
    told = predict(run, data, tmp_path / "out.jsonl", "--max_new_tokens=6", "--micro_batch_size=8")
    model = load_adapter(AutoModelForCausalLM, run / "adapter", tmp_path / "medical_lm-model")
    tokenizer = AutoTokenizer.from_pretrained(run / "adapter")
    first = json.loads((run / "adapter" / "usage.json").read_text())["first_tokens"]
    num_cut = 0
    for row in told:
        ids = torch.tensor([first + tokenizer(f"{row['question']}\n", add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            new = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False
            )
        new = new[0, ids.shape[1] :]
        assert row["prediction"] == tokenizer.decode(new, skip_special_tokens=True)
        assert row["is_ended"] == (tokenizer.eos_token_id in new.tolist())
        num_cut += not row["is_ended"]
    if num_cut:
        assert (
            f"{num_cut} rows: the text ended at 6 tokens, the most that are written (--max_new_tokens)"
            in capsys.readouterr().out
        )
    little = ["--max_new_tokens=6", "--micro_batch_size=auto", "--memory_budget=1MiB"]  # too little to train in
    again = predict(run, data, tmp_path / "one_by_one.jsonl", *little)
    assert [row["prediction"] for row in again] == [row["prediction"] for row in told]
    with pytest.raises(SystemExit):
        predict(run, data, tmp_path / "long.jsonl", "--max_new_tokens=46")
    assert "row 2: its prompt has 3 tokens" in capsys.readouterr().err


def test_images_and_their_pixels(tmp_path: Path, accelerator: object) -> None:
    run = run_of("driving_images-classification", tmp_path)
    folder = tmp_path / "pictures"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for place in range(9):
        pixels = draw.integers(0, 255, (20 + place, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{place}.png")
    told = predict(run, folder, tmp_path / "classes.jsonl")
    processor = AutoImageProcessor.from_pretrained(run / "adapter")
    model = load_adapter(AutoModelForImageClassification, run / "adapter", tmp_path / "driving_images-model")
    for place, row in enumerate(told):
        assert row["image"] == f"{place}.png"
        with Image.open(folder / row["image"]) as opened, torch.no_grad():
            image = opened.convert("RGB")
            shares = model(**processor(image, return_tensors="pt")).logits[0].softmax(-1)
        assert list(row["probabilities"].values()) == pytest.approx(shares.tolist(), abs=1e-4)

    run = run_of("driving_images-segmentation", tmp_path / "pixels")
    told = predict(run, folder, tmp_path / "masks.jsonl", "--micro_batch_size=1")
    many = predict(run, folder, tmp_path / "many.jsonl", "--micro_batch_size=4")
    assert sorted(file.name for file in (tmp_path / "masks-images").iterdir()) == sorted(
        Path(row["mask_file"]).name for row in told
    )
    for row, other in zip(told, many, strict=True):
        mask, size = pixels_of(tmp_path / row["mask_file"]), pixels_of(folder / row["image"]).shape[:2]
        assert mask.shape == size
        shares = [float((mask == number).mean()) for number in range(len(row["prediction"]))]
        assert list(row["prediction"].values()) == pytest.approx(shares, abs=1e-5)
        assert (mask != pixels_of(tmp_path / other["mask_file"])).mean() < 0.01


@pytest.mark.parametrize("how", [{"micro_batch_size": "auto"}, {"micro_batch_size": 4, "full_determinism": "true"}])
def test_it_learns_what_fits_and_what_is_fastest_as_it_goes_on(recipe: Recipe, how: dict[str, Any]) -> None:
    run = recipe(**MADE, **how)
    module, config = recipe_of(run)
    with open_predictions(module, run, config) as opened:
        rows = [opened.rows.predictor.prepare({"text": text}) for text in ("eye " * 3, "heart") * 8]
        assert len(opened.rows.told(rows)) == 16
        assert len(opened.rows.told(rows[:2])) == 2
        costs, capacity = opened.rows.cutter.costs, opened.rows.cutter.capacity
        assert costs is not None
        if "full_determinism" in how:
            assert costs.costs == UNLEARNED
            assert costs.is_settled
            assert capacity.num_examples(4) == 4
        else:
            assert costs.num_windows == 2
            assert not costs.explores
            assert capacity.num_examples(64) == 16  # of max_length 64: a window
            assert 15 * 64 <= 4 * capacity.num_examples(4) <= 16 * 64  # as many tokens, by what each text takes too


@pytest.mark.parametrize("budget", ["auto", "200 MiB"])
def test_no_training_step_is_tried_before_predictions_and_evaluations(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: str
) -> None:
    run = recipe(**MADE)
    (tmp_path / "rows.jsonl").write_text('{"text": "eye"}\n{"text": "heart heart"}\n')
    monkeypatch.setattr(torch.Tensor, "backward", None)
    monkeypatch.setattr("hf_accum.tuner.workload.build_optimizer", None)
    how = ["--micro_batch_size=auto", f"--memory_budget={budget}"]
    assert len(predict(run, tmp_path / "rows.jsonl", tmp_path / "told.jsonl", *how)) == 2
    main(["evaluate", str(run), *how])


@pytest.mark.parametrize("lora", [{"lora.rank": 2}, {"lora.rank": 2, "frozen_dtype": "float32"}, {"lora.rank": 0}])
def test_a_run_in_bfloat16_is_evaluated_and_predicted_as_it_was_trained(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: dict[str, Any]
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    run = recipe(**MADE, **lora, micro_batch_size=1)  # by which no rounding depends on the others
    main(["evaluate", str(run), f"--output={tmp_path / 'again'}"])
    once, again = (json.loads((place / "evaluation.json").read_text()) for place in (run, tmp_path / "again"))
    assert again["loss"] == pytest.approx(once["loss"], rel=1e-6)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": r["text"]}) + "\n" for r in held_out_of(run)))
    told = predict(run, tmp_path / "rows.jsonl", tmp_path / "told.jsonl")
    for one, expected in zip(told, held_out_of(run), strict=True):
        assert one["probabilities"] == pytest.approx(expected["probabilities"], abs=5e-3)  # adapters may be folded


def held_out_of(run: Path) -> list[dict[str, Any]]:
    return written(run / "errors.jsonl")


def test_what_cannot_be_predicted_is_said(recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = recipe(**MADE)
    data = tmp_path / "texts.jsonl"
    rows = [{"text": f"syncope {place}"} for place in range(100)]
    data.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"text": None}]))
    output = tmp_path / "out.jsonl"

    def said(*arguments: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["predict", *map(str, arguments)])
        assert ended.value.code == 2
        assert not output.exists()
        return capsys.readouterr().err

    on_data = [f"--dataset={data}", f"--output={output}"]
    assert "row 101: field 'text'" in said(run, *on_data)
    assert "was begun with other values of max_length" in said(run, *on_data, "--max_length=8")
    others = tmp_path / "others.jsonl"
    others.write_text(data.read_text())
    assert "was begun with other values of dataset, the dataset's files; go on with" in said(
        run, f"--dataset={others}", f"--output={output}"
    )
    weights = run / "adapter" / "adapter_model.safetensors"
    trained_anew = weights.read_bytes()
    weights.write_bytes(trained_anew)
    anew = said(run, *on_data, "--on_bad_row=skip")
    assert "other values of the run's weights; go on with those, remove the folder, or give another --output" in anew
    shutil.rmtree(output.with_name("out.jsonl.partial"))
    told = predict(run, data, output, "--on_bad_row=skip")
    other = output.rename(tmp_path / "skipped.jsonl")
    assert [row["text"] for row in told] == [row["text"] for row in rows]
    assert "left out: 1 bad rows (field 'text'" in capsys.readouterr().out
    new = f"--output={tmp_path / 'new.jsonl'}"
    assert "is there already" in said(run, f"--dataset={data}", f"--output={other}")
    assert "field 'prediction': is in the data" in said(run, f"--dataset={other}", new)
    assert "`labels` c, b, a: have to be those" in said(run, f"--dataset={data}", new, "--labels=c,b,a").replace(
        "--labels", "`labels`"
    )
    assert "no such column; the row has text" in said(run, f"--dataset={data}", new, "--text_column=note")
    assert "error: --output " in said(run, f"--dataset={data}", "--output=nowhere/out.jsonl")
    assert "has to be a file .jsonl, .csv or .parquet" in said(run, f"--dataset={data}", "--output=out.txt")
    assert "in a folder that is there" in said(run, f"--dataset={data}", "--output=nowhere/out.jsonl")
    assert "no_such.jsonl" in said(run, "--dataset=no_such.jsonl", new)
    assert "embedded data has labels" in said(run, "--dataset=embedded:icd", new)
    assert "has to be the folder of a run" in said(tmp_path, f"--dataset={data}", new)
    assert "--max_new_tokens 0" in said(run, f"--dataset={data}", new, "--max_new_tokens=0")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert "no row" in said(run, f"--dataset={empty}", new)
    surrogates = tmp_path / "surrogates.jsonl"
    surrogates.write_text('{"text": "a", "more": [{"half": "\\ud800"}]}\n')
    assert "row 1: field 'more': not UTF-8 (a lone surrogate)" in said(run, f"--dataset={surrogates}", new)
    (run / "evaluation.json").unlink()
    assert "has to be a run that is through" in said(run, f"--dataset={data}", new)


def test_standard_input_that_is_closed_or_cannot_be_kept_is_said_and_leaves_nothing(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, output, temporary = recipe(**MADE), tmp_path / "out.jsonl", tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    class Pipe(io.BytesIO):
        ends_with: BaseException = OSError(errno.ENOSPC, "No space left on device")

        def read(self, size: int | None = -1) -> bytes:
            if self.tell():
                raise self.ends_with
            return super().read(10 if size else 0)

    pipe = Pipe(b'{"text": "syncope"}')
    for stdin, why in ((None, "is closed"), (SimpleNamespace(buffer=pipe), "are free there: make room.*TMPDIR")):
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(SystemExit) as ended:
            predict(run, "-", output)
        assert ended.value.code == 2
        assert re.search(f"^error: --dataset -: standard input .*{why}", capsys.readouterr().err, re.MULTILINE)
    pipe.ends_with = KeyboardInterrupt()
    pipe.seek(0)
    with pytest.raises(KeyboardInterrupt):
        predict(run, "-", output)
    assert not list(temporary.glob("hf-accum-stdin-*"))
    assert not output.exists()


def test_a_file_is_one_process_s_at_a_time(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hf_accum.run.folder._PATIENCE_SECONDS", 0.2)
    run, data, output = recipe(**MADE), tmp_path / "texts.jsonl", tmp_path / "out.jsonl"
    data.write_text('{"text": "syncope"}\n')
    with (tmp_path / ".out.jsonl.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(SystemExit):
            predict(run, data, output)
        assert "another process is writing it" in capsys.readouterr().err
    assert len(predict(run, data, output)) == 1
    assert not list(tmp_path.glob(".out*"))


def test_names_in_another_order_are_refused_of_a_pooled_classifier_too(
    recipe: Recipe, notes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = recipe(**MADE, pooling="mean")
    with pytest.raises(SystemExit) as ended:
        predict(run, notes, tmp_path / "out.jsonl", "--labels=muscle,heart,eye")
    assert ended.value.code == 2
    assert (
        "have to be those that the run was trained with, in their order: eye, heart, muscle"
        in capsys.readouterr().err
    )


def test_rows_that_are_not_there_are_said_before_the_model_is_loaded(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = recipe(**MADE)
    (tmp_path / "rows.docx").write_text("no rows")
    (tmp_path / "rows.jsonl").write_text('{"text": "eye"}\n')
    monkeypatch.setattr("hf_accum.cli.prediction.open_predictions", None)
    for dataset, told in (
        (tmp_path / "missing.csv", "no such file or folder"),
        (tmp_path / "rows.docx", "a file has to be .jsonl, .json, .csv"),
        (f"{tmp_path / 'rows.jsonl'} --split=test", "has no split 'test': it has train"),
        ("embedded:terms", "embedded data has labels, on which `hf-accum evaluate` looks at the run"),
    ):
        name, *more = str(dataset).split()
        with pytest.raises(SystemExit) as ended:
            main(["predict", str(run), f"--dataset={name}", f"--output={tmp_path / 'out.jsonl'}", *more])
        assert ended.value.code == 2
        assert told in capsys.readouterr().err


def test_a_recipe_that_predicts_nothing_says_so(
    tmp_path: Path, accelerator: object, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of("medical_mlm", tmp_path)
    with pytest.raises(SystemExit) as ended:
        predict(run, tmp_path / "medical_mlm-data", tmp_path / "out.jsonl")
    assert ended.value.code == 2
    assert "predicts nothing of rows, as it has no function" in capsys.readouterr().err


@pytest.mark.slow
def test_a_file_is_gone_on_with_and_two_ranks_write_the_same(recipe: Recipe, tmp_path: Path) -> None:
    run = recipe(**MADE)
    data = tmp_path / "many.jsonl"
    with data.open("w") as file:
        for place in range(6_000):
            file.write(json.dumps({"text": f"syncope {'murmur ' * (place % 50)}", "id": place}) + "\n")
    whole = predict(run, data, tmp_path / "whole.jsonl")
    assert [row["id"] for row in whole] == list(range(6_000))

    output = tmp_path / "stopped.jsonl"
    command = [sys.executable, "-m", "hf_accum.cli.main", "predict", str(run), f"--dataset={data}"]
    command += [f"--output={output}", "--micro_batch_size=1"]
    partial = tmp_path / "stopped.jsonl.partial" / "state.json"
    for number, expected in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 75)):
        before = json.loads(partial.read_text())["place"]["num_rows"] if partial.exists() else 0
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if partial.exists() and json.loads(partial.read_text())["place"]["num_rows"] > before:
                break
            time.sleep(0.02)
        os.kill(process.pid, number)
        said, _ = process.communicate(timeout=120)
        assert process.returncode == expected, said
        assert not output.exists()
    assert "stopping after these rows" in said
    assert "are kept in stopped.jsonl.partial; the same command goes on" in said
    done = subprocess.run([*command[:-1], "--micro_batch_size=50"], capture_output=True, text=True, check=True)
    assert "going on behind" in done.stdout

    how = ("-m", "hf_accum.cli.main", "predict", str(run), f"--dataset={data}", f"--output={tmp_path / 'two.jsonl'}")
    assert launch(*how, num_processes=2).returncode == 0
    for other in (written(output), written(tmp_path / "two.jsonl")):
        assert [(row["id"], row["prediction"]) for row in other] == [(row["id"], row["prediction"]) for row in whole]
        for one, row in zip(other, whole, strict=True):
            assert one["probabilities"] == pytest.approx(row["probabilities"], abs=1e-5)
