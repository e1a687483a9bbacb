"""A text, or a pair of two that are read together: a premise and its hypothesis, say."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from hf_accum.errors import UserError
from hf_accum.tasks.tokenization import text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Texts = str | tuple[str, str]
"""Of a row: one, or a pair."""
_TYPES = "token_type_ids"


def texts_of(row: Mapping[str, Any], column: str, pair_column: str | None) -> Texts:
    """A row's text, with that of the second column where there is one.

    Raises:
        BadRow: if either is missing or cannot be used.
    """
    text = text_of(row, column)
    return text if pair_column is None else (text, text_of(row, pair_column))


def reads_token_types(model: nn.Module) -> bool:
    """Whether a model tells the texts of a pair by token types, as BERT does: by what its config says."""
    config: Any = model.config
    return (getattr(config.get_text_config(), "type_vocab_size", None) or 0) > 1


def read_pairs(tokenizer: "PreTrainedTokenizerBase", model: nn.Module, max_length: int) -> None:
    """Make a tokenizer ready for pairs as the model reads them: without token types, where that has none of them.

    Raises:
        UserError: if nothing stands between the two texts, or `max_length` leaves no place for them.
    """
    num_around, num_special = tokenizer.num_special_tokens_to_add(), tokenizer.num_special_tokens_to_add(pair=True)
    if num_special <= num_around:
        raise UserError(
            f"`text_pair_column`: the model's tokenizer, a {type(tokenizer).__name__}, puts no token between two "
            "texts, which run into each other; join them by `text_template`, with words of your own between"
        )
    if max_length < num_special + 2:
        raise UserError(
            f"`max_length` {max_length}: has to be at least {num_special + 2}, for a token of each text beside the "
            f"{num_special} special ones"
        )
    if not reads_token_types(model):
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != _TYPES]
        tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names  # what is saved beside the result


def with_token_types(inputs: dict[str, Any], tokenizer: "PreTrainedTokenizerBase | None", model: nn.Module) -> Any:
    """Made-up inputs of pairs: with token types, where the model reads them and its tokenizer gives them."""
    gives = tokenizer is None or _TYPES in tokenizer.model_input_names
    if not gives or not reads_token_types(model):
        return inputs
    return inputs | {_TYPES: inputs["input_ids"].new_zeros(inputs["input_ids"].shape)}
