"""Tokenizers that are given lists of words: words have to have the tokens that they have within a text."""

from typing import TYPE_CHECKING, Any

from hf_accum.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def take_words_as_in_a_text(name: str, tokenizer: Any) -> None:
    """Have a tokenizer that tells words by the space before them see one before each word of a list.

    It goes into the tokenizer's own normalizer, which is saved with it (`add_prefix_space` means nothing to some).

    Raises:
        UserError: if the tokens of words are other ones even so.
    """
    from tokenizers.normalizers import Prepend
    from tokenizers.normalizers import Sequence as All

    if _has_the_tokens_of_a_text(tokenizer):
        return
    backend = tokenizer.backend_tokenizer
    backend.normalizer = All([step for step in (backend.normalizer, Prepend(" ")) if step is not None])
    if not _has_the_tokens_of_a_text(tokenizer):
        raise UserError(
            f"`model` {name}: its tokenizer makes other tokens of a list of words than of a text with spaces between "
            "them, as which the model knows them; take another model"
        )


def _has_the_tokens_of_a_text(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether words of a list have them."""
    words = ["of", "patient", "T2DM's"]
    apart = tokenizer(words, is_split_into_words=True, add_special_tokens=False)
    behind_first = [
        token for token, word in zip(apart["input_ids"], apart.word_ids(), strict=True) if word not in (None, 0)
    ]
    together = tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]
    return together[-len(behind_first) :] == behind_first
