"""Pretrained models: what of them is new, their dropouts, and the limits they put on texts."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import (
    ARCHITECTURES,
    CONFIGS,
    HEADS,
    NUM_POSITIONS,
    VOCAB_SIZE,
    WORDS,
    load_classifier,
    make_inputs,
    make_tokenizer,
    save_base,
)
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    CanineConfig,
    CanineModel,
    CanineTokenizer,
)
from transformers.utils import logging

from hf_accum.accumulation.example import Example
from hf_accum.errors import UserError
from hf_accum.models.loading import load_model, loaded, num_positions
from hf_accum.models.tokenizers import load_tokenizer
from hf_accum.tasks.tokenization import pad

WITH_POSITIONS = ("bert", "roberta", "distilbert", "electra", "biogpt")

# The dropouts that transformers' documentation lists for each, some of which may be null: as the model's.
DROPOUTS = {
    "bert": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "roberta": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "distilbert": ("dropout", "attention_dropout", "seq_classif_dropout", "qa_dropout"),
    "electra": ("hidden_dropout_prob", "attention_probs_dropout_prob", "summary_last_dropout"),
    "deberta": ("hidden_dropout_prob", "attention_probs_dropout_prob", "pooler_dropout"),
    "modernbert": ("embedding_dropout", "mlp_dropout", "attention_dropout", "classifier_dropout"),
    "llama": ("attention_dropout",),
}


def logits_of(model: nn.Module, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    with torch.no_grad():
        return model(**make_inputs()).logits


# Dropout


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_dropout_is_overridden_everywhere(tmp_path: Path, architecture: str, dropout: float) -> None:
    model = load_classifier(save_base(tmp_path, architecture), dropout=dropout).model
    layers = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    assert layers or architecture == "llama"
    assert {layer.p for layer in layers} <= {dropout}
    assert {name: getattr(model.config, name) for name in DROPOUTS[architecture]} == dict.fromkeys(
        DROPOUTS[architecture], dropout
    )
    # What no layer shows (attention draws its own mask): the outcome.
    assert model.training
    assert torch.equal(logits_of(model, seed=1), logits_of(model, seed=2)) is (dropout == 0)
    model.eval()
    assert torch.equal(logits_of(model, seed=1), logits_of(model, seed=2))


def test_a_dropout_of_the_head_is_overridden_too(tmp_path: Path) -> None:
    folder = save_base(tmp_path, "bert")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"classifier_dropout": 0.7}))
    model: Any = load_classifier(folder, dropout=0.2).model
    assert (model.dropout.p, model.config.classifier_dropout) == (0.2, 0.2)
    model = load_classifier(folder).model
    assert (model.dropout.p, model.config.classifier_dropout) == (0.7, 0.7)


def test_a_dropout_that_no_config_names_is_overridden_too(tmp_path: Path) -> None:
    class WithItsOwn(BertForSequenceClassification):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.extra = nn.Dropout(0.9)

    folder = save_base(tmp_path, "bert")
    model: Any = load_model(WithItsOwn, folder, load_tokenizer(folder), max_length=8, dropout=0.2).model
    assert model.extra.p == 0.2


def test_without_an_override_dropout_is_the_model_s_own(tmp_path: Path) -> None:
    model = load_classifier(save_base(tmp_path, "bert")).model
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.1}


# What is new


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "biogpt"])
def test_the_head_is_new_and_nothing_of_the_backbone(tmp_path: Path, architecture: str) -> None:
    folder = save_base(tmp_path, architecture)
    pretrained = load_classifier(folder)
    assert pretrained.new_modules == HEADS[architecture]
    base = AutoModel.from_pretrained(folder).state_dict()
    prefix = pretrained.model.base_model_prefix
    for name, parameter in pretrained.model.named_parameters():
        is_new = any(name.startswith(f"{module}.") for module in pretrained.new_modules)
        assert is_new is not name.startswith(f"{prefix}.")
        if not is_new:
            assert torch.equal(parameter, base[name.removeprefix(f"{prefix}.")])


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_a_classifier_that_was_trained_before_has_nothing_new(tmp_path: Path, architecture: str) -> None:
    before = load_classifier(save_base(tmp_path / "base", architecture), num_labels=4).model
    before.save_pretrained(tmp_path / "trained")
    make_tokenizer().save_pretrained(str(tmp_path / "trained"))
    again = load_classifier(str(tmp_path / "trained"), num_labels=4)
    assert again.new_modules == ()
    assert torch.equal(logits_of(again.model.eval()), logits_of(before.eval()))


def test_a_pooler_that_the_checkpoint_lacks_is_new(tmp_path: Path) -> None:
    """As of a BERT that was pretrained on masked words only."""
    save_base(tmp_path, "bert")
    AutoModel.from_pretrained(tmp_path, add_pooling_layer=False).save_pretrained(tmp_path)
    assert load_classifier(str(tmp_path)).new_modules == ("bert.pooler", "classifier")


def test_labels_go_into_the_config(tmp_path: Path) -> None:
    names = {0: "absent", 1: "mild", 2: "severe"}
    model = load_model(
        AutoModelForSequenceClassification,
        save_base(tmp_path, "bert"),
        make_tokenizer(),
        max_length=8,
        id2label=names,
        label2id={name: index for index, name in names.items()},
        problem_type="single_label_classification",
    ).model
    assert logits_of(model).shape == (3, 3)
    assert model.config.id2label == names


def test_weights_are_float32_and_trained_from_the_start(tmp_path: Path) -> None:
    folder = save_base(tmp_path, "bert")
    AutoModel.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(tmp_path)
    model = load_classifier(folder).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())


def test_loading_leaves_transformers_as_talkative_as_it_was(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = save_base(tmp_path, "bert")
    before = logging.get_verbosity()
    shows_progress = logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity_warning()
        capfd.readouterr()
        load_classifier(folder)
        said = capfd.readouterr()
        assert said.out + said.err == ""
        with pytest.raises(ValueError, match="its weights cannot be read"):
            load_classifier(save_broken(tmp_path / "broken"))
        assert logging.get_verbosity() == logging.WARNING
        assert logging.is_progress_bar_enabled() is shows_progress
    finally:
        logging.set_verbosity(before)


def save_broken(folder: Path) -> str:
    save_base(folder, "bert")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    return str(folder)


# Limits


@pytest.mark.parametrize("architecture", WITH_POSITIONS)
def test_texts_may_be_as_long_as_there_are_positions(tmp_path: Path, architecture: str) -> None:
    """The model itself is the oracle: at the limit it runs, one token more and it fails."""
    folder = save_base(tmp_path, architecture)
    model = load_classifier(folder, max_length=NUM_POSITIONS).model.eval()
    assert num_positions(model) == NUM_POSITIONS
    with torch.no_grad():
        model(**make_inputs((NUM_POSITIONS, 3)))
        with pytest.raises((IndexError, RuntimeError)):
            model(**make_inputs((NUM_POSITIONS + 1, 3)))
    said = rf"`max_length` {NUM_POSITIONS + 1}: has to be at most {NUM_POSITIONS}, the positions that '{folder}' has"
    with pytest.raises(ValueError, match=said):
        load_classifier(folder, max_length=NUM_POSITIONS + 1)


@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - set(WITH_POSITIONS)))
def test_relative_positions_are_no_limit(tmp_path: Path, architecture: str) -> None:
    model = load_classifier(save_base(tmp_path, architecture), max_length=10 * NUM_POSITIONS).model
    assert num_positions(model) is None
    with torch.no_grad():
        assert model(**make_inputs((2 * NUM_POSITIONS, 3))).logits.isfinite().all()


def test_a_tokenizer_that_knows_more_than_the_model_is_refused(tmp_path: Path) -> None:
    folder = save_base(tmp_path, "bert", make_tokenizer((*WORDS, "neologism")))
    with pytest.raises(
        ValueError, match=rf"knows {VOCAB_SIZE + 1} tokens, the model {VOCAB_SIZE}: they do not belong"
    ):
        load_classifier(folder)
    smaller = save_base(tmp_path / "smaller", "bert", make_tokenizer(WORDS[:-1]))
    assert load_classifier(smaller).new_modules == ("classifier",)


def test_a_tokenizer_that_pads_with_another_token_than_positions_are_counted_from_is_refused(tmp_path: Path) -> None:
    """As RoBERTa's: the positions of all texts would be wrong."""
    tokenizer = make_tokenizer()
    tokenizer.pad_token = "[UNK]"
    folder = save_base(tmp_path, "roberta", tokenizer)
    with pytest.raises(
        ValueError, match=r"pads with token 1, the model counts positions from its padding token 0: they"
    ):
        load_classifier(folder)


@pytest.mark.parametrize("architecture", ["llama", "biogpt"])
def test_a_decoder_is_told_which_token_pads(tmp_path: Path, architecture: str) -> None:
    """Whatever its config says of itself, its head has to find each text's last token."""
    tokenizer = make_tokenizer()
    tokenizer.pad_token = "[UNK]"
    model = load_classifier(save_base(tmp_path, architecture, tokenizer)).model.eval()
    assert model.config.pad_token_id == 1
    text = torch.tensor([[2, 9, 8, 7, 3]])
    padded = torch.tensor([[2, 9, 8, 7, 3, 1, 1]])
    with torch.no_grad():
        alone = model(input_ids=text, attention_mask=torch.ones_like(text)).logits
        among = model(input_ids=padded, attention_mask=(padded != 1).long()).logits
    torch.testing.assert_close(among, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "biogpt"])
def test_padding_changes_no_logits(tmp_path: Path, architecture: str) -> None:
    folder = save_base(tmp_path, architecture)
    model = load_classifier(folder).model.eval()
    texts = ["w1 w2 w3 w4 w5 w6 w7", "w8", "w9 w10 w11"]
    ids: list[list[int]] = load_tokenizer(folder)(texts)["input_ids"]  # type: ignore[assignment]
    examples = [Example(str(i), len(tokens), 1.0, {"input_ids": tokens}) for i, tokens in enumerate(ids)]
    with torch.no_grad():
        together = model(**pad(examples, 0)).logits
        alone = torch.cat([model(**pad([example], 0)).logits for example in examples])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    assert (alone[0] - alone[1]).abs().max() > 0.05  # texts make a difference


# What cannot be loaded


@pytest.mark.parametrize("name", ["./missing", "/no/such/folder", "someone/missing", "missing", "a/b/c"])
def test_no_such_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = (
        rf"^`model` {name}: has to be a local folder, or an id of the hub, with a (tokenizer|model) to load \(.+\)$"
    )
    with pytest.raises(ValueError, match=said):
        load_tokenizer(name)
    with pytest.raises(ValueError, match=said):
        load_model(AutoModelForSequenceClassification, name, make_tokenizer(), max_length=8)


@pytest.mark.parametrize("config", [None, "{", '{"model_type": "nonsense"}', "{}", "no weights"])
def test_a_folder_without_a_model(tmp_path: Path, config: str | None) -> None:
    make_tokenizer().save_pretrained(str(tmp_path))
    if config == "no weights":
        CONFIGS["bert"].save_pretrained(tmp_path)
    elif config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=rf"^`model` {tmp_path}: has to be a local folder, .* to load \(.+\)$"):
        load_classifier(str(tmp_path))


def test_a_classifier_of_other_labels_is_refused(tmp_path: Path) -> None:
    load_classifier(save_base(tmp_path / "base", "bert"), num_labels=5).model.save_pretrained(tmp_path / "trained")
    make_tokenizer().save_pretrained(str(tmp_path / "trained"))
    with pytest.raises(
        ValueError, match="if it is a classifier of other labels, give the model that it was made from"
    ):
        load_classifier(str(tmp_path / "trained"), num_labels=3)


def test_weights_that_are_broken_or_another_model_s(tmp_path: Path) -> None:
    folder = save_broken(tmp_path)
    with pytest.raises(ValueError, match=rf"model '{folder}': its weights cannot be read"):
        load_classifier(folder)
    save_base(tmp_path / "llama", "llama")
    shutil.copy(tmp_path / "llama" / "model.safetensors", tmp_path)
    with pytest.raises(
        ValueError, match=rf"model '{folder}': none of its weights fits BertForSequenceClassification"
    ):
        load_classifier(folder)


def test_a_relative_folder_is_found_again_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter names its base model by where it is, not by where the run was started."""
    save_base(tmp_path / "models" / "mine", "bert")
    monkeypatch.chdir(tmp_path / "models")
    assert load_classifier("mine").model.config._name_or_path == str(tmp_path / "models" / "mine")


def test_a_recipe_without_a_model_of_its_own_says_that_one_has_to_be_given() -> None:
    with pytest.raises(UserError, match=r"^`model` is not given: has to be a folder or an id of the hub"):
        loaded("config", None, lambda: pytest.fail("nothing is there to load"))


@pytest.mark.slow
def test_an_encoder_that_tells_of_no_embeddings_is_loaded(tmp_path: Path) -> None:
    """CANINE's characters are embedded by several hashes of them."""
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = CanineModel(CanineConfig(**sizes, intermediate_size=16, max_position_embeddings=64, num_hash_buckets=32))
    model.save_pretrained(tmp_path)
    tokenizer = CanineTokenizer(model_max_length=64)
    pretrained = load_model(AutoModelForSequenceClassification, str(tmp_path), tokenizer, max_length=32)
    assert pretrained.new_modules == ("classifier",)
