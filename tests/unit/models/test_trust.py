"""Malicious models: no code runs, only safetensors are read, and nothing comes from where no revision pins it."""

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import run
from safetensors.torch import load_file
from tiny import load_classifier, save_base
from transformers import AutoModelForSequenceClassification

from hf_accum.config.trust import Trust
from hf_accum.models.loading import build_without_weights
from hf_accum.models.tokenizers import load_tokenizer

CODE = """
import pathlib
pathlib.Path({trace!r}).touch()
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast
class Config(BertConfig):
    model_type = "of_their_own"
class Model(BertForSequenceClassification):
    config_class = Config
class Words(PreTrainedTokenizerFast):
    pass
"""
AUTO_MAP = {"AutoConfig": "theirs.Config", "AutoModelForSequenceClassification": "theirs.Model"}


class Evil:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A file that is there if anything ran."""
    return tmp_path / "trace"


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model, for a test to make malicious."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [*sys.path])
    return Path(save_base(tmp_path / "model", "bert"))


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def pickle_weights(model: Path, name: str = "pytorch_model.bin", **more: Any) -> None:
    torch.save(load_file(model / "model.safetensors") | more, model / name)
    (model / "model.safetensors").unlink()


def with_code(model: Path, trace: Path, model_type: str = "of_their_own", **auto_map: str) -> None:
    (model / "theirs.py").write_text(CODE.format(trace=str(trace)))
    change(model / "config.json", model_type=model_type, auto_map=auto_map or AUTO_MAP)


def everything(model: Path, **trust: Any) -> Any:
    """All that a recipe and a plan do with a model."""
    build_without_weights(AutoModelForSequenceClassification, str(model), max_length=16, trust=Trust(**trust))
    load_tokenizer(str(model), Trust(**trust))
    return load_classifier(str(model), trust=Trust(**trust)).model


def refused(model: Path, said: str, **trust: Any) -> None:
    with pytest.raises(ValueError, match=said):
        everything(model, **trust)
    with pytest.raises(ValueError, match=said):  # also by itself
        load_classifier(str(model), trust=Trust(**trust))


# Pickles


@pytest.mark.parametrize("allowed", [False, True])
def test_a_malicious_pickle_is_not_run_whether_or_not_pickles_are_allowed(
    model: Path, trace: Path, allowed: bool
) -> None:
    pickle_weights(model, evil=Evil(trace))
    said = "its weights cannot be read" if allowed else r"pytorch_model.bin, a pickle: .*`allow_pickle_weights`"
    refused(model, said, allow_pickle_weights=allowed)
    assert not trace.exists()
    torch.load(model / "pytorch_model.bin", weights_only=False)
    assert trace.exists(), "the oracle is blind"


def test_weights_in_a_harmless_pickle_are_read_where_that_is_allowed(model: Path) -> None:
    wanted = everything(model).bert.state_dict()
    pickle_weights(model)
    refused(model, "`allow_pickle_weights`")
    read = everything(model, allow_pickle_weights=True).bert.state_dict()
    assert all(torch.equal(read[name], wanted[name]) for name in wanted)


def test_safetensors_are_read_where_there_are_both(model: Path, trace: Path) -> None:
    torch.save({"evil": Evil(trace)}, model / "pytorch_model.bin")
    for allowed in (False, True):
        everything(model, allow_pickle_weights=allowed)
    assert not trace.exists()


def test_a_config_cannot_name_a_pickle_as_its_weights(model: Path, trace: Path) -> None:
    """transformers reads adapter_model.bin where a config names it, though it was told to read safetensors only."""
    torch.save({"evil": Evil(trace)}, model / "adapter_model.bin")
    change(model / "config.json", transformers_weights="adapter_model.bin")
    refused(model, r"its weights are in adapter_model.bin, a pickle")
    assert not trace.exists()


def test_an_adapter_in_the_folder_is_not_loaded_with_it(model: Path, trace: Path) -> None:
    (model / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "someone/else"}')
    (model / "adapter_model.bin").write_bytes(pickle.dumps(Evil(trace)))
    refused(model, "is an adapter, or has one in it")
    assert not trace.exists()


# Code


def test_code_of_a_model_runs_only_where_it_is_trusted(model: Path, trace: Path) -> None:
    with_code(model, trace)
    refused(model, r"contains custom code.*`trust_remote_code` runs its code")
    assert not trace.exists()
    everything(model, trust_remote_code=True)
    assert trace.exists(), "the oracle is blind"


def test_code_beside_a_model_that_transformers_knows_is_left_alone(model: Path, trace: Path) -> None:
    with_code(model, trace, model_type="bert")
    assert type(everything(model)).__module__.startswith("transformers.")
    assert not trace.exists()


def test_code_of_a_tokenizer_runs_only_where_it_is_trusted(model: Path, trace: Path) -> None:
    with_code(model, trace, model_type="bert", AutoTokenizer="theirs.Words")
    change(
        model / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "theirs.Words"]}, tokenizer_class="Words"
    )
    everything(model)
    assert not trace.exists()
    everything(model, trust_remote_code=True)
    assert trace.exists(), "the oracle is blind"


@pytest.mark.parametrize(
    "how",
    [
        {"attn_implementation": "someone/kernels:attention"},
        {"_attn_implementation": "someone/kernels:attention"},
        {"attn_implementation": {"": "sdpa", "text_config": "someone/kernels:attention"}},
        {"text_config": {"_attn_implementation": "someone/kernels:attention"}},
    ],
)
def test_attention_kernels_of_the_hub_are_code(model: Path, how: dict[str, Any]) -> None:
    change(model / "config.json", **how)
    refused(model, "attention kernels from the hub .someone/kernels:attention.*`trust_remote_code`")


# Where it comes from


@pytest.mark.parametrize("flag", ["revision", "code_revision"])
def test_a_local_folder_has_no_revisions(model: Path, flag: str) -> None:
    refused(model, rf"`{flag}` abc: has to be left out with a local folder", **{flag: "abc"})


PINNED = """
import sys
from hf_accum.models.trust import Trust
from hf_accum.models.loading import build_without_weights, load_model
from hf_accum.models.tokenizers import load_tokenizer
from transformers import AutoModelForSequenceClassification as Auto
for revision in (None, "main", "a" * 40, "b" * 40):
    trust = Trust(revision=revision)
    tokenizer = load_tokenizer("me/tiny", trust)
    empty = build_without_weights(Auto, "me/tiny", max_length=16, trust=trust)
    model = load_model(Auto, "me/tiny", tokenizer, max_length=16, trust=trust).model
    print(len(tokenizer), empty.config.layer_norm_eps, model.bert.embeddings.word_embeddings.weight[0, 0].item())
trust = Trust(revision="a" * 40, trust_remote_code=True)
try:
    load_model(Auto, "me/coded", tokenizer, max_length=16, trust=trust)
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
def test_everything_of_a_model_is_of_the_revision_that_was_asked_for(model: Path, tmp_path: Path) -> None:
    """In a cache of the hub with two commits of one model, as a download leaves it; main is the second."""
    from safetensors.torch import save_file

    for repository in ("tiny", "coded"):
        cache = tmp_path / "home" / "hub" / f"models--me--{repository}"
        (cache / "refs").mkdir(parents=True)
        (cache / "refs" / "main").write_text("b" * 40)
        for number, commit in enumerate(("a" * 40, "b" * 40), 1):
            snapshot = cache / "snapshots" / commit
            shutil.copytree(model, snapshot)
            weights = load_file(model / "model.safetensors")
            weights["embeddings.word_embeddings.weight"][0, 0] = number
            save_file(weights, snapshot / "model.safetensors", metadata={"format": "pt"})
            change(snapshot / "config.json", layer_norm_eps=number / 8)
            words = json.loads((snapshot / "tokenizer.json").read_text())
            if number == 1:
                del words["model"]["vocab"]["w39"]
            (snapshot / "tokenizer.json").write_text(json.dumps(words))
            if repository == "coded":
                change(snapshot / "config.json", auto_map={"AutoConfig": "other/place--theirs.Config"})
    done = run([sys.executable, "-c", PINNED], HF_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    *found, said = done.stdout.splitlines()
    assert found == ["44 0.25 2.0", "44 0.25 2.0", "43 0.125 1.0", "44 0.25 2.0"]
    assert (
        f"`revision` {'a' * 40}: does not pin the code of me/coded, which is in another repository, other/pl" in said
    )


# Files that are broken


def broken(name: str) -> Callable[[Path], None]:
    def write_nonsense(model: Path) -> None:
        (model / name).write_bytes(b"{")

    return write_nonsense


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda m: (m / "config.json").write_text("[]"), "has to be a JSON object|is not a valid JSON"),
        (lambda m: change(m / "config.json", hidden_size="wide"), "Validation error for field 'hidden_size': "),
        (lambda m: change(m / "config.json", hidden_act="none_such"), "KeyError: 'none_such'"),
        (
            lambda m: change(m / "config.json", num_attention_heads=5),
            "not a multiple of the number of attention heads",
        ),
        (lambda m: change(m / "config.json", model_type="vit"), "Unrecognized configuration class"),
        (lambda m: change(m / "config.json", hidden_size=32), r"is \(16,\) there, and has to be \(32,\)"),
        (lambda m: change(m / "config.json", auto_map=7), "with a (model|tokenizer) to load"),
        (broken("model.safetensors"), "its weights cannot be read"),
        (broken("tokenizer.json"), "with a tokenizer to load"),
        (broken("tokenizer_config.json"), "with a (model|tokenizer) to load"),
        (lambda m: (m / "model.safetensors").unlink(), "with a model in safetensors to load"),
    ],
)
def test_a_spoilt_model_is_one_message_that_names_it(model: Path, spoil: Callable[[Path], None], said: str) -> None:
    spoil(model)
    with pytest.raises(ValueError, match=said) as stopped:
        everything(model)
    assert str(model) in str(stopped.value)
    assert "\n" not in str(stopped.value)
