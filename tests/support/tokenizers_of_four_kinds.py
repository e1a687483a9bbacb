"""Tiny tokenizers of the kinds that models have, trained on a few sentences in a moment."""

from typing import Any, cast

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hf_accum.models.word_tokens import take_words_as_in_a_text

_TEXTS = [
    "Patient took aspirin 5mg daily for severe heart failure and nausea.",
    "No hyponatremia under hydrochlorothiazide, but T2DM's course was mild.",
]
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
KINDS = ("WordPiece", "byte-level BPE", "Unigram", "characters")


def tokenizer_of(kind: str) -> PreTrainedTokenizerBase:
    """A tokenizer of one of the KINDS, for lists of words; that of characters knows only those of the texts above."""
    made: Any
    more: dict[str, Any] = {"vocab_size": 120, "special_tokens": _SPECIAL, "show_progress": False}
    if kind == "WordPiece":
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer = normalizers.BertNormalizer()
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(**more)
    elif kind == "byte-level BPE":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        made.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(**more, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    elif kind == "Unigram":
        made = Tokenizer(models.Unigram())
        made.normalizer = normalizers.NFKC()
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(**more, unk_token="[UNK]")
    else:
        made = Tokenizer(models.BPE())  # without merges: each character that it knows by itself, no other
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        more["vocab_size"] = 0
        trainer = trainers.BpeTrainer(**more)
    made.train_from_iterator(_TEXTS, trainer)
    made.post_processor = cast(Any, processors.TemplateProcessing)(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    take_words_as_in_a_text(kind, tokenizer)
    return tokenizer
