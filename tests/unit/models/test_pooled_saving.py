"""A pooled classifier's files: used without this package by what their README says, and restored."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from pooled import load_pooled
from tiny import make_tokenizer, save_base
from trained import LORA, adapt, logits_of, train

from hf_accum.accumulation.part_cache import pool_parts
from hf_accum.config.long_texts import TextWindows
from hf_accum.config.lora import LoraConfig
from hf_accum.config.trust import Trust
from hf_accum.models.pooled_classifier import StatePooling, saved_pooling
from hf_accum.models.pooled_saving import pooled_classifier_in
from hf_accum.models.pooling import classifier_pooling
from hf_accum.models.saving import load_weights, save_model, weights_of, write_model
from hf_accum.models.usage import Usage
from hf_accum.models.usage_lines import usage_section

CASES: list[tuple[str, StatePooling, int]] = [("bert", "mean", 2), ("llama", "max", 2), ("distilbert", "mean", 0)]
WHOLE = LoraConfig(rank=0)


def trained_model(folder: Path, architecture: str, pooling: StatePooling, rank: int):
    model = adapt(load_pooled(save_base(folder, architecture), pooling), LORA if rank else WHOLE)
    train(model)
    return model


@pytest.mark.parametrize(("architecture", "pooling", "rank"), CASES)
def test_weights_are_restored_and_trained_further(
    tmp_path: Path, architecture: str, pooling: StatePooling, rank: int
) -> None:
    model = trained_model(tmp_path / "base", architecture, pooling, rank)
    saved, kept = logits_of(model), weights_of(model)
    save_model(model, make_tokenizer(), tmp_path / "result")
    assert saved_pooling(tmp_path / "result") == pooling
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    train(model)
    assert not torch.equal(logits_of(model), saved)
    (tmp_path / "kept").mkdir()
    write_model(model, make_tokenizer(), tmp_path / "kept", kept)  # of before, as a checkpoint does
    for folder in ("result", "kept"):
        train(model)
        load_weights(model, tmp_path / folder)
        assert torch.equal(logits_of(model), saved)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trained
    assert pooled_classifier_in(model) is not None


RUN_EACH = """
import json, os, re, sys
found = {}
for folder in sys.argv[1:]:
    os.environ["BASE"] = os.path.abspath(f"bases/{folder if os.path.isdir(f'bases/{folder}') else 'bert'}")
    os.chdir(folder)
    (code,) = re.findall(r"```python\\n(.*?)```", open("README.md").read(), re.S)
    exec(code.replace('"a text"', '"w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11"'), names := {})
    found[folder] = names["logits"].tolist()
    os.chdir("..")
assert not any(name.startswith("hf_accum") for name in sys.modules)
print(json.dumps(found))
"""


def save(model: Any, folder: Path, windows: TextWindows | None = None) -> None:
    """With the lines that use it."""
    usage = Usage(
        task="text-classification",
        auto_class="AutoModelForSequenceClassification",
        problem="single_label_classification",
        max_length=20 if windows is None else windows.max_length,
        windows=None if windows is None else asdict(windows),
    )
    save_model(model, make_tokenizer(), folder, usage)
    (folder / "README.md").write_text(usage_section(folder))


def test_another_program_predicts_the_same_by_the_readme(tmp_path: Path) -> None:
    texts = ["w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11", "another one"]
    expected, batch = {}, make_tokenizer()(texts, padding=True, return_tensors="pt")
    for architecture, pooling, rank in CASES:
        model = trained_model(tmp_path / "bases" / architecture, architecture, pooling, rank)
        save(model, tmp_path / architecture)
        model.eval()
        with torch.no_grad():
            inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
            expected[architecture] = model(**inputs).logits
    cut = torch.tensor([[2, 5, 6, 7, 8, 3], [2, 8, 9, 10, 11, 3]])  # w1 is 5; the third window is one too many
    for how in ("mean", "max", "attention"):
        windows = TextWindows(max_length=6, overlap=1, most=2, pooling=how)
        model = adapt(load_pooled(save_base(tmp_path / "bases" / "bert", "bert"), "mean", windows), LORA)
        train(model)
        save(model, tmp_path / how, windows)
        load_weights(model, tmp_path / how)
        model.eval()
        with torch.no_grad():
            outputs = [model(input_ids=ids).logits for ids in (cut, torch.tensor([[2, 1, 1, 3]]))]
        expected[how] = torch.cat([pool_parts(of_text, [len(of_text)], how) for of_text in outputs])
    command = [sys.executable, "-c", RUN_EACH, *expected]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *names, logits = done.stdout.splitlines()
    for architecture, found in json.loads(logits).items():
        torch.testing.assert_close(torch.tensor(found), expected[architecture], rtol=1e-5, atol=1e-6)
    assert [line[0] for line in names] == ["abc"[int(row.argmax())] for of in expected.values() for row in of]


def test_peft_does_not_take_it_for_a_classifier_of_the_first_token(tmp_path: Path) -> None:
    model = trained_model(tmp_path / "base", "bert", "mean", 2)
    save_model(model, make_tokenizer(), tmp_path / "adapter")
    with pytest.raises(ValueError, match="FeatureExtraction"):
        AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter", num_labels=3)


def test_the_pooling_of_a_trained_model_is_known(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", "bert")
    assert classifier_pooling(base, Trust()) == "cls"
    model = adapt(load_pooled(base, "max"), WHOLE)
    save_model(model, make_tokenizer(), tmp_path / "model")
    assert classifier_pooling(str(tmp_path / "model"), Trust()) == "max"
