"""Tiny random pretrained models and a word tokenizer, made in milliseconds and saved like real checkpoints."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from hf_accum.models.loading import Pretrained, load_model
from hf_accum.models.tokenizers import load_tokenizer

NUM_POSITIONS = 20
WORDS = tuple(f"w{index}" for index in range(40))
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
VOCAB_SIZE = len(_SPECIAL) + len(WORDS)

SMALLEST: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": NUM_POSITIONS,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "initializer_range": 0.3,  # so that what goes in shows in what comes out
}
_DISTILBERT = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
_DEBERTA = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "position_buckets": 8,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    name: AutoConfig.for_model(model_type, **SMALLEST | more)
    for name, model_type, more in (
        ("bert", "bert", {}),
        # Counts positions from its padding index on: an embedding up to there stands for no position.
        ("roberta", "roberta", {"max_position_embeddings": NUM_POSITIONS + 1}),
        ("distilbert", "distilbert", _DISTILBERT),
        ("electra", "electra", {"embedding_size": 16}),
        ("deberta", "deberta-v2", _DEBERTA),
        ("modernbert", "modernbert", {"cls_token_id": 2, "sep_token_id": 3, "local_attention": 8}),
        ("llama", "llama", {"num_key_value_heads": 1}),
        ("biogpt", "biogpt", {}),
    )
}


def make_decoder_config(model_type: str, **more: Any) -> PreTrainedConfig:
    """Of a decoder that is in no list here."""
    return AutoConfig.for_model(model_type, **SMALLEST | {"num_key_value_heads": 1, "head_dim": 8} | more)


ARCHITECTURES = tuple(name for name in CONFIGS if name != "biogpt")
HEADS = {
    "bert": ("classifier",),
    "roberta": ("classifier",),
    "distilbert": ("pre_classifier", "classifier"),
    "electra": ("classifier",),
    "deberta": ("pooler", "classifier"),
    "modernbert": ("head", "classifier"),
    "llama": ("score",),
    "biogpt": ("score",),
}


def make_tokenizer(words: Sequence[str] = WORDS, *, mask_token: bool = False) -> PreTrainedTokenizerBase:
    """One token a word, [CLS] before and [SEP] after (each text of a pair); in the place of the last word a token
    for what is masked.
    """
    if mask_token:
        words = (*words[:-1], "[MASK]")
    vocabulary = {word: index for index, word in enumerate((*_SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    cast(Any, tokenizer).pre_tokenizer = pre_tokenizers.Whitespace()
    cast(Any, tokenizer).post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        **({"mask_token": "[MASK]"} if mask_token else {}),
    )


def make_pair_tokenizer() -> PreTrainedTokenizerBase:
    """The same, with token types, as BERT's has them."""
    tokenizer = make_tokenizer()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names  # which are saved
    return tokenizer


def save_base(
    folder: Path, architecture: str, tokenizer: PreTrainedTokenizerBase | None = None, auto_class: Any = AutoModel
) -> str:
    """Save a random base model (no head, unless the class has one) and its tokenizer; returns the folder as a
    `--model` flag has it.
    """
    torch.manual_seed(0)
    auto_class.from_config(CONFIGS[architecture]).save_pretrained(folder)
    (tokenizer or make_tokenizer()).save_pretrained(str(folder))
    return str(folder)


def load_classifier(folder: str, *, num_labels: int = 3, max_length: int = 16, **how: Any) -> Pretrained:
    """The saved base model with a new head, as a recipe loads it."""
    return load_model(
        AutoModelForSequenceClassification,
        folder,
        load_tokenizer(folder),
        max_length=max_length,
        num_labels=num_labels,
        **how,
    )


def make_inputs(lengths: Sequence[int] = (7, 4, 2), seed: int = 0) -> dict[str, torch.Tensor]:
    """A batch of random words, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(len(_SPECIAL), VOCAB_SIZE, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return {"input_ids": ids * mask, "attention_mask": mask.long()}
