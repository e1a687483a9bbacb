"""`hf-accum export`: the README's lines, in a process without torch, tell what `hf-accum predict` does."""

import ast
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from every_recipe import RECIPES
from PIL import Image

from hf_accum.cli.exporting import folder as exported_folder
from hf_accum.cli.main import main

Recipe = Callable[..., Path]
MADE = {"max_steps": 4, "effective_batch_size": 16, "learning_rate": 0.01}
BY_ID = {recipe.id: recipe for recipe in RECIPES}
TEXTS = ["syncope", "murmur; ptosis", " ".join(["glaucoma; murmur"] * 30), "syncope murmur"]


@pytest.fixture
def onnx() -> None:
    """What writes and runs ONNX, which is no part of the test extra."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)


def run_of(recipe_id: str, folder: Path) -> Path:
    recipe = BY_ID[recipe_id]
    flags = recipe.make_flags(folder, folder / "run", max_steps=3, learning_rate=0.01)
    importlib.import_module(f"recipes.{recipe.name}").main(flags)
    return folder / "run"


def export(run: Path, output: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    capsys.readouterr()
    main(["export", str(run), str(output), *flags])
    said = capsys.readouterr().out
    (largest,) = re.findall(r"own model by ([\d.e+-]+) at most", said)
    assert float(largest) < 1e-4
    assert not [path for path in output.parent.iterdir() if path.name.startswith(f".{output.name}")]
    return said


def lines_of(output: Path, *changes: tuple[str, str]) -> list[str]:
    """What the README's code prints of other texts, in the folder alone, which may lie anywhere."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", (output / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    for before, after in changes:
        assert before in code
        code = code.replace(before, after)
    code += "\nimport sys\nassert not {'torch', 'transformers', 'hf_accum'} & set(sys.modules)\n"
    output = output.rename(output.with_name("elsewhere"))
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=output, env={}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def predicted(run: Path, rows: list[Any], folder: Path) -> list[dict[str, Any]]:
    data, told = folder / "asked.jsonl", folder / "told.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(["predict", str(run), f"--dataset={data}", f"--output={told}"])
    return [json.loads(line) for line in told.read_text().splitlines()]


def figures_in(line: str) -> dict[str, float]:
    """Those of a line, by name."""
    words = line.split()
    return {name: float(value) for name, value in zip(words[::2], words[1::2], strict=True)}


def check_label(line: str, row: dict[str, Any]) -> None:
    label, probability = line.split()
    assert label == row["prediction"]
    assert float(probability) == pytest.approx(row["probabilities"][label], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [{}, {"pooling": "mean", "temperature_scaling": True}, {"pooling": "max", "text_pair_column": "note"}],
    ids=["one label", "pooled, with a temperature", "pairs"],
)
def test_texts(
    recipe: Recipe, notes: Path, tmp_path: Path, onnx: None, how: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    if "text_pair_column" in how:
        rows = [json.loads(line) for line in (notes / "train-0.jsonl").read_text().splitlines()]
        how = {**how, "dataset": tmp_path / "pairs.jsonl"}
        how["dataset"].write_text("".join(json.dumps(row | {"note": "ptosis"}) + "\n" for row in rows))
    run, output = recipe(**MADE, **how), tmp_path / "out"
    export(run, output, capsys)
    assert {path.name for path in output.iterdir()} == {
        *("model.onnx", "tokenizer.json", "tokenizer_config.json", "labels.json", "README.md")
    }
    told = predicted(run, [{"text": text, "note": text} for text in TEXTS], tmp_path)
    asked: tuple[str, Any] = ('["a text", "another one"]', TEXTS)
    if "text_pair_column" in how:
        asked = ('[("a text", "its pair"), ("another one", "its pair")]', [(text, text) for text in TEXTS])
    for line, row in zip(lines_of(output, (asked[0], repr(asked[1]))), told, strict=True):
        check_label(line, row)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [{}, {"window_pooling": "attention", "pooling": "mean"}], ids=["mean of windows", "attention"]
)
def test_windows(
    recipe: Recipe, tmp_path: Path, onnx: None, how: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    how = {"long_texts": "windows", "max_length": 16, "window_overlap": 4, "max_windows": 6, **how}
    run, output = recipe(**MADE, **how), tmp_path / "out"
    export(run, output, capsys)
    (line,) = lines_of(output, ('"a text of yours"', repr(TEXTS[2])))
    check_label(line, predicted(run, [{"text": TEXTS[2]}], tmp_path)[0])


@pytest.mark.slow
def test_several_labels_in_8_bits_and_numbers(
    recipe: Recipe, notes: Path, tmp_path: Path, onnx: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run, output = recipe(**MADE, problem="multi_label_classification", tune_thresholds=True), tmp_path / "out"
    said = export(run, output, capsys, "--int8", f"--dataset={notes}")
    exact, rounded = re.findall(r"^(?:float32|8 bits): (num_examples 150 .*)$", said, re.MULTILINE)
    assert f"- float32: {exact}" in (output / "README.md").read_text()
    main(["evaluate", str(run), f"--dataset={notes}"])
    of_run = figures_in(capsys.readouterr().out.splitlines()[0].partition(": ")[2])
    # Of adapters that are folded into weights the last digits differ, which may put two texts in another order.
    assert figures_in(exact) == pytest.approx(of_run, abs=5e-4)
    assert figures_in(rounded)["loss"] == pytest.approx(of_run["loss"], abs=0.05)  # near thresholds F1 is another
    assert rounded != exact
    told = predicted(run, [{"text": text} for text in TEXTS], tmp_path)
    for line, row in zip(
        lines_of(output, ('["a text", "another one"]', repr(TEXTS))), told, strict=True
    ):  # the weights are rounded
        for label, probability in ast.literal_eval(line).items():
            assert probability == pytest.approx(row["probabilities"][label], abs=0.05)

    rows = [json.loads(line) for line in (notes / "train-0.jsonl").read_text().splitlines()]
    data, number = tmp_path / "numbers.jsonl", tmp_path / "number"
    data.write_text("".join(json.dumps(row | {"label": len(row["text"]) / 30}) + "\n" for row in rows))
    run = recipe(**MADE, dataset=data, problem="regression", group_column="patient")
    (tmp_path / "elsewhere").rename(tmp_path / "first")
    (tmp_path / "told.jsonl").unlink()
    export(run, number, capsys)
    told = predicted(run, [{"text": text} for text in TEXTS], tmp_path)
    (line,) = lines_of(number, ('["a text", "another one"]', repr(TEXTS)))
    assert ast.literal_eval(line) == pytest.approx([row["prediction"] for row in told], abs=1e-4)


@pytest.mark.slow
def test_entities(tmp_path: Path, onnx: None, accelerator: object, capsys: pytest.CaptureFixture[str]) -> None:
    run, output = run_of("clinical_ner", tmp_path), tmp_path / "out"
    export(run, output, capsys)
    text = " ".join(f"w{place % 36}" for place in range(7, 60))
    (line,) = lines_of(output, ('"a text of yours, with words in it"', repr(text)))
    assert ast.literal_eval(line) == predicted(run, [{"text": text}], tmp_path)[0]["prediction"]


@pytest.mark.slow
def test_vectors(tmp_path: Path, onnx: None, accelerator: object, capsys: pytest.CaptureFixture[str]) -> None:
    run, output, texts = run_of("term_retrieval", tmp_path), tmp_path / "out", ["w1", "w2 w3", "w5 " * 30]
    said = export(run, output, capsys, "--int8")
    assert len(re.findall(r"^(?:float32|8 bits): .*recall", said, re.MULTILINE)) == 2
    export(run, tmp_path / "exact", capsys)
    told = predicted(run, [{"term": text} for text in texts], tmp_path)
    vectors = np.array([row["term_embedding"] for row in told])
    asked = ('["a text", "another one"]', repr(texts))
    found = lines_of(tmp_path / "exact", asked, ("print(vectors @", "print((vectors @"), (".T)", ".T).tolist())"))
    np.testing.assert_allclose(ast.literal_eval(found[0]), vectors @ vectors.T, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_images(
    task: str, tmp_path: Path, onnx: None, accelerator: object, capsys: pytest.CaptureFixture[str]
) -> None:
    run, output, folder = run_of(f"driving_images-{task}", tmp_path), tmp_path / "out", tmp_path / "pictures"
    said = export(run, output, capsys, *(["--int8"] if task == "segmentation" else []))
    assert ("8 bits" in said) == (task == "segmentation")
    if task == "segmentation":
        export(run, output := tmp_path / "exact", capsys)
    folder.mkdir()
    side = json.loads((output / "labels.json").read_text())["resolution"]
    size = (side, side, 3) if task == "segmentation" else (50, 70, 3)
    pixels = np.random.default_rng(0).integers(0, 255, size, dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "0.png")
    main(["predict", str(run), f"--dataset={folder}", f"--output={tmp_path / 'told.jsonl'}"])
    row = json.loads((tmp_path / "told.jsonl").read_text())
    opened = ('Image.new("RGB", (640, 480))', f'Image.open({str(folder / "0.png")!r}).convert("RGB")')
    if task == "classification":
        (line,) = lines_of(output, opened)
        check_label(line, row)
        return
    shown = ("print(logits[0].argmax(-1))", "print(logits[0].argmax(-1).tolist())")
    numbers, labels = lines_of(output, opened, shown)
    with Image.open(tmp_path / row["mask_file"]) as mask:
        assert (np.asarray(mask) == np.array(ast.literal_eval(numbers))).mean() > 0.99
    assert ast.literal_eval(labels) == list(row["prediction"])


def test_what_cannot_be_exported_is_said(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, output = recipe(**MADE), tmp_path / "out"
    monkeypatch.setattr("hf_accum.cli.exporting.session._PACKAGES", ("json",))

    def said(*arguments: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["export", *map(str, arguments)])
        assert ended.value.code == 2
        assert not output.exists()
        return capsys.readouterr().err

    assert "has to be the folder of a run" in said(tmp_path, output)
    assert "is for --int8" in said(run, output, "--dataset=a.jsonl")
    assert "has to be a new or empty folder" in said(run, run)
    assert "--quantization nf4: has to be none to export" in said(run, output, "--quantization=nf4")
    usage = json.loads((run / "adapter" / "usage.json").read_text())
    for task, way_out in (("text-generation", "vLLM and llama.cpp"), ("fill-mask", "trained further")):
        (run / "adapter" / "usage.json").write_text(json.dumps(usage | {"task": task}))
        told = said(run, output)
        assert f"a model for {task} is not exported" in told
        assert way_out in told
    (run / "adapter" / "usage.json").write_text(json.dumps(usage))
    (run / "evaluation.json").rename(run / "other.json")
    assert "has to be a run that is through" in said(run, output)
    monkeypatch.setattr("hf_accum.cli.exporting.session._PACKAGES", ("no_such_package",))
    assert "pip install 'hf-accum[onnx]'" in said(run, output)


@pytest.mark.slow
def test_nothing_is_left_of_what_differs_or_of_a_full_disk(
    recipe: Recipe, tmp_path: Path, onnx: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, output = recipe(**MADE), tmp_path / "out"

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for name, value, reason in (
        ("LARGEST_DIFFERENCE", 0.0, "nothing is written"),
        ("write_graph", full, "No space left on device"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(exported_folder, name, value)
            capsys.readouterr()
            with pytest.raises(SystemExit) as ended:
                main(["export", str(run), str(output)])
            assert ended.value.code == 2
            assert reason in capsys.readouterr().err
        assert not [path for path in tmp_path.iterdir() if "out" in path.name]
