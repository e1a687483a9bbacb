"""Every command on runs of each kind: what one command tells of a run is what the others tell of it.

Where a kind has a test of a command of its own (test_NAME_command.py, test_every_recipe.py), it is left out here.
"""

import ast
import contextlib
import http.client
import importlib
import io
import json
import random
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from every_recipe import RECIPES
from huggingface_hub import ModelCard
from PIL import Image
from tiny import WORDS, make_pair_tokenizer, save_base
from tiny_vision import COLOURS, SIDE

from hf_accum.cli.main import main

pytestmark = pytest.mark.slow

Runs = Callable[[str], list[Path]]
BY_ID = {recipe.id: recipe for recipe in RECIPES}
OF_TEXTS: dict[str, dict[str, Any]] = {
    "several labels": {"problem": "multi_label_classification", "label_column": "signs", "tune_thresholds": True},
    "numbers": {"problem": "regression", "label_column": "score"},
    "pairs": {"text_pair_column": "note"},
    "windows": {"long_texts": "windows", "max_length": 12, "window_overlap": 4, "max_windows": 4},
}
OF_IMAGES = "driving_images-classification"
ASKED = [{"text": " ".join(WORDS[n : n + size]), "note": WORDS[n]} for n, size in enumerate((1, 3, 9, 16, 30, 2, 25))]
"""Some are longer than what goes through a model at once, and one than all of its windows."""


def make_rows() -> list[dict[str, Any]]:
    """90 texts of 2 to 30 words of 45 patients, each with a note, signs, a score and a label."""
    draw, rows = random.Random(0), []
    for number in range(90):
        words = draw.choices(WORDS[:20], k=draw.randint(2, 30))
        signs = [name for name in ("cough", "fever", "rash") if draw.random() < 0.5]
        row = {"text": " ".join(words), "note": draw.choice(WORDS), "signs": signs, "score": round(len(words) / 7, 2)}
        rows.append(row | {"label": "ill" if WORDS[1] in words else "well", "patient": number // 2})
    return rows


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with texts, and the model of these; runs and what recipes need come into it."""
    folder = tmp_path_factory.mktemp("every-command")
    save_base(folder / "base", "bert", make_pair_tokenizer())
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows()))
    return folder


@pytest.fixture(scope="module")
def runs(place: Path) -> Runs:
    """Two runs of a kind, that differ in their seed; they are made when they are first asked for."""

    def run_of(kind: str, seed: int) -> Path:
        output = place / f"{kind.replace(' ', '-')}-{seed}"
        if output.is_dir():
            return output
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        how = {"max_steps": 4, "learning_rate": 0.01, "effective_batch_size": 16, "lora.rank": 2, "seed": seed}
        if kind in OF_TEXTS:
            how |= {"model": place / "base", "dataset": place / "texts.jsonl", "output_dir": output}
            how |= {"max_length": 16, "micro_batch_size": 4, "group_column": "patient", "eval_fraction": 0.3}
            name, flags = "clinical_classification", [f"--{flag}={v}" for flag, v in (how | OF_TEXTS[kind]).items()]
        else:
            name, flags = BY_ID[kind].name, BY_ID[kind].make_flags(place, output, **how)
        importlib.import_module(f"recipes.{name}").main(flags)
        return output

    return lambda kind: [run_of(kind, seed) for seed in (0, 1)]


def data_of(kind: str, place: Path) -> Path:
    return place / "texts.jsonl" if kind in OF_TEXTS else place / f"{BY_ID[kind].name}-data"


def written(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def figures_in(folder: Path) -> dict[str, Any]:
    """Those of an evaluation that are one number each."""
    found = json.loads((folder / "evaluation.json").read_text())
    return {name: value for name, value in found.items() if isinstance(value, int | float) and name != "step"}


def predicted(run: Path, rows: list[Any], folder: Path, *flags: str) -> list[dict[str, Any]]:
    data, output = folder / "asked.jsonl", folder / "told.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output.unlink(missing_ok=True)
    main(["predict", str(run), f"--dataset={data}", f"--output={output}", *flags])
    return written(output)


def check_told(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Check that two rows are told the same, to the last digits that are written."""
    if isinstance(other["prediction"], float):
        assert one["prediction"] == pytest.approx(other["prediction"], abs=1e-5)
    else:
        assert one["prediction"] == other["prediction"]
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


@pytest.mark.parametrize("kind", [*OF_TEXTS, OF_IMAGES])
def test_compare_evaluate_and_predict_give_the_same_figures(
    kind: str, runs: Runs, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both, data, found = runs(kind), data_of(kind, place), tmp_path / "found.json"
    main(["compare", *map(str, both), f"--dataset={data}", f"--output={found}"])
    on_data = json.loads(found.read_text())["figures"]
    main(["compare", *map(str, both), f"--output={found}", "--require=not_worse:loss:1000"])
    assert "not_worse:loss:1000: kept" in capsys.readouterr().out
    held_out = json.loads(found.read_text())["figures"]
    assert on_data["loss"]["first"] != on_data["loss"]["second"]
    for side, run in zip(("first", "second"), both, strict=True):
        main(["evaluate", str(run), f"--dataset={data}", f"--output={tmp_path / side}"])
        main(["evaluate", str(run), f"--output={tmp_path / f'{side}-again'}"])
        own, once = figures_in(tmp_path / side), figures_in(run)
        assert figures_in(tmp_path / f"{side}-again") == pytest.approx(once, rel=1e-5)
        assert own.keys() - on_data.keys() == {"num_examples", *(own.keys() & {"expected_calibration_error"})}
        for name, one in on_data.items():
            assert one[side] == pytest.approx(own[name], rel=1e-5, abs=1e-7), name
            assert held_out[name][side] == pytest.approx(once[name], rel=1e-5, abs=1e-7), name
        if kind == OF_IMAGES:  # whose files have a test of their own
            continue
        rows = make_rows()
        told = [row["prediction"] for row in predicted(run, rows, tmp_path)]
        if kind == "numbers":
            wrong = [abs(number - row["score"]) for number, row in zip(told, rows, strict=True)]
            assert own["mae"] == pytest.approx(sum(wrong) / len(rows), abs=1e-5)
        else:
            label = "signs" if kind == "several labels" else "label"
            right = [sorted(one) == sorted(row[label]) for one, row in zip(told, rows, strict=True)]
            assert own["accuracy"] == pytest.approx(sum(right) / len(rows))


def ask(port: int, value: Any) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", "/predict", json.dumps(value), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


@pytest.mark.parametrize("kind", OF_TEXTS)
def test_what_is_served_is_what_is_predicted(
    kind: str, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over HTTP, of a server in a thread of this process: it ends by a flag in the place of a signal."""
    import uvicorn

    answers: list[tuple[int, Any]] = []

    def serve(app: Any, listening: Any, timeout_seconds: float, say: Any) -> None:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        port = listening.getsockname()[1]
        try:
            answers.extend(ask(port, one) for one in ({"rows": ASKED}, ASKED[4], {"rows": [ASKED[0], {"other": 1}]}))
        finally:
            server.should_exit = True
            thread.join()

    monkeypatch.setattr("hf_accum.cli.serving.server.serve", serve)
    run = runs(kind)[0]
    main(["serve", str(run), "--port=0"])
    (status, answer), (of_one, alone), (of_bad, refused) = answers
    assert (status, of_one, of_bad) == (200, 200, 422), answers
    told = predicted(run, ASKED, tmp_path)
    for one, other in zip(answer["rows"], told, strict=True):
        assert {"text", "note", *one} == other.keys()
        check_told(one, other)
    check_told(alone["rows"][0], told[4])
    cut = [note.partition(":")[0] for note in answer["notes"]]
    assert cut == [f"rows[{place}]" for place in ([4] if kind == "windows" else [3, 4, 6])]
    assert "rows[1]: field 'text': no such column" in refused["error"]


def test_a_masked_language_model_is_not_served(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", str(runs("medical_mlm")[0]), "--port=0"])
    assert ended.value.code == 2
    assert "predicts nothing of rows, as it has no function" in capsys.readouterr().err


def lines_of(folder: Path, monkeypatch: pytest.MonkeyPatch, *changes: tuple[str, str]) -> tuple[dict[str, Any], str]:
    """What the lines of a folder's README leave, and print, with some of them changed."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    for before, after in changes:
        assert before in code
        code = code.replace(before, after)
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(code, names)
    return names, said.getvalue()


KINDS = {
    "several labels": ("text-classification", "macro_f1", ["A classifier of texts; of a text it sees 16 tokens"]),
    "numbers": ("text-classification", "mae", ["A model that tells a number of texts;", "label from `score`"]),
    "pairs": ("text-classification", "accuracy", ["A classifier of pairs of texts; of a pair it sees 16 tokens"]),
    "windows": ("text-classification", "accuracy", ["neighbours share 4, and a text has 4 of them at most"]),
    "clinical_ner": ("token-classification", "f1", ["A model that finds entities"]),
    "term_retrieval": ("sentence-similarity", "mrr", ["each looked for among", "rows with the same document"]),
    OF_IMAGES: ("image-classification", "accuracy", ["each of which has one class", f"pixels a side: {SIDE}"]),
    "driving_images-segmentation": ("image-segmentation", "mean_iou", ["rows with the same image"]),
    "medical_lm": ("text-generation", "loss", ["rows with the same prompt"]),
    "medical_mlm": ("fill-mask", "loss", ["guesses words that are hidden"]),
}
"""The task of the hub, a figure, and what is said."""
COLUMNS = {
    "several labels": "text from `text`, label from `signs`",
    "numbers": "text from `text`, label from `score`",
    "pairs": "text from `text`, text_pair from `note`, label from `label`",
    "windows": "text from `text`, label from `label`",
    "term_retrieval": "query from `term`, document from `definition`",
    OF_IMAGES: "image from `image`, label from `label`",
    "driving_images-segmentation": "image from `image`, mask from `mask`",
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_card_that_is_published_is_true(kind: str, runs: Runs, tmp_path: Path) -> None:
    run = runs(kind)[0]
    task, figure, said = KINDS[kind]
    main(["publish", str(run), "me/model", f"--dry_run={tmp_path / 'out'}", "--licence=apache-2.0"])
    card = ModelCard.load(tmp_path / "out" / "README.md")
    data: Any = card.data
    assert (data.pipeline_tag, data.library_name, data.license) == (task, "peft", "apache-2.0")
    assert {result.task_type for result in data.eval_results} == {task}
    of_run = figures_in(run)
    counts = {name: of_run.pop(name) for name in list(of_run) if name.startswith("num_")}
    assert {result.metric_type: result.metric_value for result in data.eval_results} == of_run
    assert f"| {figure} | {of_run[figure]:.4g} |" in card.text
    facts = json.loads((run / "run.json").read_text())
    said = [*said, f"- examples to train on: {facts['num_train']:,}", f"- held out: {facts['num_held_out']:,}"]
    said += [f"columns: {COLUMNS[kind]}\n"] if kind in COLUMNS else []
    said += [f"among {counts['num_documents']} documents"] if "num_documents" in counts else []
    for one in said:
        assert one in card.text, one
    is_of_images = task.startswith("image")
    assert ("tokens" in card.text.partition("## Training")[2]) != is_of_images
    assert ("## Labels" in card.text) == (task.endswith(("classification", "segmentation")) and kind != "numbers")


@pytest.mark.parametrize("kind", OF_TEXTS)
def test_the_lines_of_adapter_and_merged_model_tell_what_is_predicted(
    kind: str,
    runs: Runs,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, output = runs(kind)[0], tmp_path / "out"
    main(["publish", str(run), "me/model", f"--dry_run={output}"])
    main(["merge", str(run), str(tmp_path / "merged")])
    assert ("of parts of rows that the run held out" in capsys.readouterr().out) == (kind == "windows")
    told = predicted(run, ASKED, tmp_path)
    texts: list[Any] = [row["text"] for row in ASKED]
    asked = ('["a text", "another one"]', repr(texts))
    if kind == "pairs":
        pairs = [(row["text"], row["note"]) for row in ASKED]
        asked = ('[("a text", "its pair"), ("another one", "its pair")]', repr(pairs))
    monkeypatch.setenv("BASE", str(place / "base"))
    of_adapter, said = lines_of(output, monkeypatch, asked)
    monkeypatch.delenv("BASE")
    of_merged, also_said = lines_of(tmp_path / "merged", monkeypatch, asked)
    torch.testing.assert_close(of_merged["logits"], of_adapter["logits"], atol=1e-5, rtol=0)
    for lines in (said.splitlines(), also_said.splitlines()):
        if kind == "numbers":
            assert ast.literal_eval(lines[0]) == pytest.approx([row["prediction"] for row in told], abs=1e-5)
            continue
        for line, row in zip(lines, told, strict=True):
            label, _, probability = line.partition(" ")
            found = ast.literal_eval(line) if kind == "several labels" else {label: float(probability)}
            expected = row["prediction"] if kind == "several labels" else [row["prediction"]]
            assert list(found) == expected
            assert found == pytest.approx({name: row["probabilities"][name] for name in expected}, abs=1e-5)


def test_the_lines_of_other_recipes_tell_what_is_predicted(
    runs: Runs, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lines(kind: str, *changes: tuple[str, str]) -> tuple[dict[str, Any], str]:
        main(["publish", str(runs(kind)[0]), "me/model", f"--dry_run={tmp_path / kind}"])
        monkeypatch.setenv("BASE", str(place / f"{BY_ID[kind].name}-model"))
        return lines_of(tmp_path / kind, monkeypatch, *changes)

    text = " ".join(WORDS[place * 7 % 36] for place in range(40))
    (row,) = predicted(runs("clinical_ner")[0], [{"text": text}], tmp_path)
    _, said = lines("clinical_ner", ('"a text of yours, with words in it"', repr(text)))
    assert ast.literal_eval(said) == row["prediction"] != []

    texts = [row["text"] for row in ASKED]
    told = predicted(runs("term_retrieval")[0], [{"term": text} for text in texts], tmp_path)
    vectors = lines("term_retrieval")[0]["vectors_of"](texts).tolist()
    for vector, row in zip(vectors, told, strict=True):
        assert vector == pytest.approx(row["term_embedding"], abs=1e-5)

    (row,) = predicted(runs("medical_lm")[0], [{"question": "w1 w2"}], tmp_path, "--max_new_tokens=5")
    _, said = lines("medical_lm", ("a prompt of yours", "w1 w2"), ("max_new_tokens=64", "max_new_tokens=5"))
    assert said == row["prediction"] + "\n" != "\n"

    folder = tmp_path / "pictures"
    folder.mkdir()
    image = Image.new("RGB", (SIDE, SIDE), (90, 90, 90))
    image.paste(COLOURS["red"], (8, 8, 20, 20))
    image.save(folder / "0.png")
    opened = ('Image.new("RGB", (640, 480))', f'Image.open({str(folder / "0.png")!r}).convert("RGB")')
    for kind in (OF_IMAGES, "driving_images-segmentation"):
        output = tmp_path / f"{kind}.jsonl"
        main(["predict", str(runs(kind)[0]), f"--dataset={folder}", f"--output={output}"])
        (row,) = written(output)
        left, said = lines(kind, opened)
        if kind == OF_IMAGES:
            assert said == row["prediction"] + "\n"
        else:
            shares = {name: share for name, share in row["prediction"].items() if share}
            assert left["mask"].shape == (SIDE, SIDE)
            assert ast.literal_eval(said) == pytest.approx(shares, abs=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_a_report_has_both_runs_and_their_figures(kind: str, runs: Runs, tmp_path: Path) -> None:
    both = runs(kind)
    unit = "positions" if kind.startswith("driving_images") else "tokens"
    main(["report", *map(str, both), f"--output={tmp_path / 'report.html'}"])
    page = (tmp_path / "report.html").read_text()
    assert f"{unit} of an example at once, at most" in page
    for run in both:
        assert run.name in page
        value = figures_in(run)[KINDS[kind][1]]
        assert f">{value:.4g}" in page
