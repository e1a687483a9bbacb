"""The lines that use a result: right by what a pipeline of transformers, or a sum by hand, makes of the same."""

import ast
import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import WORDS, make_tokenizer, save_base
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer, pipeline

from hf_accum.models.saving import save_model
from hf_accum.models.usage import Usage, write_usage
from hf_accum.models.usage_lines import usage_section


def run_lines(folder: Path, monkeypatch: pytest.MonkeyPatch, **changed: str) -> tuple[dict[str, Any], str]:
    """What the lines of a folder leave, and print; with some of their texts changed."""
    (code,) = re.findall(r"```python\n(.*?)```", usage_section(folder), re.DOTALL)
    for before, after in changed.items():
        assert before.replace("_", " ") in code
        code = code.replace(before.replace("_", " "), after)
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(code, names)
    return names, said.getvalue()


def save_whole(folder: Path, auto_class: Any, labels: list[str], usage: Usage) -> Any:
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: number for number, name in enumerate(labels)}}
    model = auto_class.from_pretrained(save_base(folder / "base", "bert"), **names).eval()
    save_model(model, make_tokenizer(), folder / "model", usage)
    return model


def test_entities_are_those_of_a_pipeline_where_words_have_a_token_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = Usage(task="token-classification", auto_class="AutoModelForTokenClassification", max_length=20, overlap=2)
    labels = ["I-drug", "O", "B-drug", "B-sign", "I-sign"]
    model = save_whole(tmp_path, AutoModelForTokenClassification, labels, usage)
    text = " ".join(WORDS[5:20])
    names, said = run_lines(tmp_path / "model", monkeypatch, a_text_of_yours="XX", with_words_in_it=text)
    text = f"XX, {text}"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tags = pipeline("token-classification", model=model, tokenizer=tokenizer, aggregation_strategy="simple")
    expected = [(found["entity_group"], found["start"], found["end"]) for found in tags(text)]
    assert [(found["label"], found["start"], found["end"]) for found in names["entities"]] == expected
    assert all(text[found["start"] : found["end"]] == found["text"] for found in names["entities"])
    assert len(ast.literal_eval(said)) == len(expected) > 1


def test_with_layers_a_word_has_a_tag_in_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    how: dict[str, Any] = {"max_length": 20, "overlap": 2, "layers": ("drug", "sign")}
    usage = Usage(task="token-classification", auto_class="AutoModelForTokenClassification", **how)
    labels = [f"{letter}-{name}" for name in ("drug", "sign") for letter in "OBI"]
    model = save_whole(tmp_path, AutoModelForTokenClassification, labels, usage)
    text = " ".join(WORDS[5:15])
    names, _ = run_lines(tmp_path / "model", monkeypatch, **{"a_text_of_yours,_with_words_in_it": text})
    with torch.no_grad():
        logits = model(**make_tokenizer()(text, return_tensors="pt")).logits[0, 1:-1]
    for layer, name in enumerate(("drug", "sign")):
        letters = "".join("OBI"[int(number)] for number in logits[:, 3 * layer : 3 * layer + 3].argmax(-1))
        num_entities = len(re.findall("B|(?:^|(?<=O))I", letters))
        assert sum(found["label"] == name for found in names["entities"]) == num_entities


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification", "regression"])
def test_logits_become_labels_by_what_was_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: str
) -> None:
    how: dict[str, Any] = {"max_length": 20, "problem": problem, "is_calibrated": problem != "regression"}
    usage = Usage(task="text-classification", auto_class="AutoModelForSequenceClassification", **how)
    labels = ["1", "2", "3"] if problem != "regression" else ["LABEL_0"]
    model = save_whole(tmp_path, AutoModelForSequenceClassification, labels, usage)
    thresholds = {"1": 0.2, "2": 0.99, "3": 0.01}
    fitted = {"temperature": 3.0} | ({"thresholds": thresholds} if problem.startswith("multi") else {})
    (tmp_path / "model" / "calibration.json").write_text(json.dumps(fitted))
    texts = ["w1 w2 w3", "w7"]
    said = run_lines(tmp_path / "model", monkeypatch, a_text=texts[0], another_one=texts[1])[1].splitlines()
    with torch.no_grad():
        logits = [model(**make_tokenizer()(text, return_tensors="pt")).logits[0] for text in texts]
    for line, row in zip(said, logits, strict=problem != "regression"):
        if problem == "regression":
            assert ast.literal_eval(line) == pytest.approx([float(row[0]) for row in logits], rel=1e-5)
        elif problem.startswith("multi"):
            expected = {name: float(p) for name, p in zip(labels, (row / 3).sigmoid(), strict=True)}
            expected = {name: p for name, p in expected.items() if p >= thresholds[name]}
            assert ast.literal_eval(line) == pytest.approx(expected, rel=1e-5)
        else:
            name, probability = line.split()
            assert name == labels[int(row.argmax())]
            assert float(probability) == pytest.approx(float((row / 3).softmax(-1).max()), rel=1e-5)


@pytest.mark.parametrize("is_adapter", [False, True])
def test_that_a_base_has_no_head_is_said_where_transformers_warns_of_it(tmp_path: Path, is_adapter: bool) -> None:
    usage = Usage(task="text-classification", auto_class="AutoModelForSequenceClassification", max_length=20)
    save_whole(tmp_path, AutoModelForSequenceClassification, ["1", "2"], usage)
    if is_adapter:
        (tmp_path / "model" / "adapter_config.json").write_text("{}")
    said = usage_section(tmp_path / "model")
    assert ("calls the head MISSING: it comes with the adapter" in said) == is_adapter
    write_usage(Usage(task="image-segmentation", auto_class="SemanticSegmenter"), tmp_path / "model")
    assert "MISSING" not in usage_section(tmp_path / "model")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({}, "A classifier of texts; of a text it sees 20 tokens, and what is behind them is cut off."),
        ({"problem": "regression"}, "A model that tells a number of texts; of a text it sees 20 tokens, and"),
        (
            {"is_pair": True},
            "A classifier of pairs of texts; of a pair it sees 20 tokens: the longer text loses its end",
        ),
        (
            {"problem": "regression", "windows": {"overlap": 4, "most": 9, "pooling": "max"}},
            "A model that tells a number of texts. A text of more than 20 tokens is cut into windows of so many;",
        ),
    ],
    ids=["classes", "numbers", "pairs", "numbers of windows"],
)
def test_what_a_model_of_texts_tells_of_what_is_said(tmp_path: Path, how: dict[str, Any], said: str) -> None:
    write_usage(Usage(task="text-classification", auto_class="X", max_length=20, **how), tmp_path)
    assert said in usage_section(tmp_path)


def test_of_a_folder_without_usage_nothing_is_said(tmp_path: Path) -> None:
    assert usage_section(tmp_path) == ""
