"""A model's tokenizer, able to pad."""

from typing import TYPE_CHECKING

from hf_accum.config.trust import Trust
from hf_accum.models.trust import local
from hf_accum.models.word_tokens import take_words_as_in_a_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
from hf_accum.errors import UserError
from hf_accum.models.loading import loaded, quiet_transformers


def load_tokenizer(
    name: str,
    trust: Trust = Trust(),  # noqa: B008 (frozen)
    *,
    of_words: bool = False,
) -> "PreTrainedTokenizerBase":
    """The model's tokenizer, able to pad; `of_words`, to take texts that are lists of words.

    Raises:
        UserError: if there is none under that name, or one that knows no words, cannot tell of which words its
            tokens are, or makes other tokens of words than of a text.
    """
    from transformers import AutoTokenizer

    # Byte-level tokenizers take a word for the start of a text without a space before it.
    how = {"add_prefix_space": True} if of_words else {}
    with quiet_transformers():
        tokenizer = loaded(
            "tokenizer", name, lambda: AutoTokenizer.from_pretrained(local(name), **trust.of_hub, **how)
        )
    if of_words and not tokenizer.is_fast:
        raise UserError(f"`model` {name}: has to have a fast tokenizer, which tells of which words its tokens are")
    if len(tokenizer) <= len(tokenizer.all_special_ids) + 2:  # transformers makes one of nothing at all
        raise UserError(
            f"`model` {name}: has to have the files of its tokenizer, which without them knows only "
            f"{len(tokenizer)} tokens"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise UserError(f"`model` {name}: its tokenizer has to have a token for padding, or for the end of a text")
    if of_words:
        take_words_as_in_a_text(name, tokenizer)
    return tokenizer
