"""Weights that are saved: whole or not at all, loaded back the same, by other programs too."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_peft import load_adapter
from tiny import ARCHITECTURES, load_classifier, make_inputs, make_tokenizer, save_base
from trained import ONE_OF_EACH_KIND, adapt, logits_of, train
from transformers import AutoModelForSequenceClassification

from hf_accum.config.lora import LoraConfig
from hf_accum.models.saving import load_weights, save_model, weights_folder


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rank_0_trains_all_and_saves_a_whole_model(tmp_path: Path, architecture: str) -> None:
    pretrained = load_classifier(save_base(tmp_path / "base", architecture))
    model = adapt(pretrained, LoraConfig(rank=0))
    assert model is pretrained.model
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert weights_folder(model) == "model"
    train(model)
    save_model(model, make_tokenizer(), tmp_path / "model")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert torch.equal(logits_of(again), logits_of(model))

    saved = logits_of(model)
    train(model)
    assert not torch.equal(logits_of(model), saved)
    load_weights(model, tmp_path / "model")
    assert torch.equal(logits_of(model), saved)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_are_restored_and_loaded_by_peft(tmp_path: Path, architecture: str) -> None:
    adapted = adapt(load_classifier(save_base(tmp_path / "base", architecture)))
    assert weights_folder(adapted) == "adapter"
    untrained = logits_of(adapted)
    train(adapted)
    saved = logits_of(adapted)
    assert (saved - untrained).abs().max() > 0.01
    save_model(adapted, make_tokenizer(), tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    again = load_adapter(AutoModelForSequenceClassification, tmp_path / "adapter", tmp_path / "base")
    assert torch.equal(logits_of(again), saved)

    train(adapted)
    assert not torch.equal(logits_of(adapted), saved)
    load_weights(adapted, tmp_path / "adapter")
    assert torch.equal(logits_of(adapted), saved)
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    train(adapted)  # they are the trained ones still, and of the same model
    assert [name for name, p in adapted.named_parameters() if p.requires_grad] == trained
    assert not torch.equal(logits_of(adapted), saved)


@pytest.mark.slow
def test_a_program_without_this_package_predicts_the_same(tmp_path: Path) -> None:
    expected = {}
    for architecture in ONE_OF_EACH_KIND:
        adapted = adapt(load_classifier(save_base(tmp_path / "bases" / architecture, architecture)))
        train(adapted)
        save_model(adapted, make_tokenizer(), tmp_path / architecture)
        expected[architecture] = logits_of(adapted)
    torch.save(make_inputs(seed=1), tmp_path / "inputs.pt")
    code = """
import json, sys
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
inputs = torch.load("inputs.pt")
logits = {}
for folder in sys.argv[1:]:
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(f"bases/{folder}", config=config)
    model = PeftModel.from_pretrained(model, folder).eval()
    with torch.no_grad():
        logits[folder] = model(**inputs).logits.tolist()
    assert AutoTokenizer.from_pretrained(folder)("w1 w2")["input_ids"] == [2, 5, 6, 3]
assert not any(name.startswith("hf_accum") for name in sys.modules)
print(json.dumps(logits))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *ONE_OF_EACH_KIND], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    logits = json.loads(done.stdout.splitlines()[-1])
    for architecture in ONE_OF_EACH_KIND:
        torch.testing.assert_close(torch.tensor(logits[architecture]), expected[architecture], rtol=1e-6, atol=1e-7)


def test_a_save_that_fails_leaves_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = adapt(load_classifier(save_base(tmp_path / "base", "bert")))
    save_model(adapted, make_tokenizer(), tmp_path / "adapter")
    before = {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
    train(adapted)

    class Unsaved:
        def save_pretrained(self, folder: str) -> None:
            assert list(Path(folder).iterdir())  # the weights are there already
            raise OSError("no space left on device")

    unsaved: Any = Unsaved()
    with pytest.raises(OSError, match="no space left"):
        save_model(adapted, unsaved, tmp_path / "adapter")
    assert {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]
