"""Texts of rows as examples, and examples as padded tensors."""

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_accum.accumulation.example import Example
from hf_accum.data.formats.rows import BadRow, check_unicode, is_missing, value_of
from hf_accum.errors import shown
from hf_accum.tuner.kernels import is_card_traced

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase


# A fast tokenizer keeps in itself whether it truncates, and the streams of training and evaluation share one.
_ONE_AT_A_TIME = threading.Lock()


def text_of(row: Mapping[str, Any], column: str) -> str:
    """The text of a row.

    Raises:
        BadRow: if there is no such column, or no text in it.
    """
    text = value_of(row, column)
    if is_missing(text):
        raise BadRow(column, "no text (null or NaN)")
    if not isinstance(text, str):
        raise BadRow(column, f"{shown(text)} is of type {type(text).__name__}, not a text")
    if not text.strip():
        raise BadRow(column, "empty text")
    check_unicode(column, text)
    return text


def tokenize(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], max_length: int | None, *, special: bool = True
) -> list[tuple[np.ndarray, int]]:
    """Token ids of each text, at most `max_length` of them (None: all), and how many tokens that cut off.

    With the `special` tokens of the tokenizer, or without.
    """
    found = _encoded(tokenizer, list(texts), max_length, add_special_tokens=special)
    # A ninth of what lists of Python's integers take.
    return [(np.array(encoded["input_ids"][row], dtype=np.int32), num_cut) for encoded, row, num_cut in found]


def tokenize_pairs(
    tokenizer: "PreTrainedTokenizerBase", pairs: Sequence[tuple[str, str]], max_length: int
) -> list[tuple[dict[str, np.ndarray], int]]:
    """`input_ids` of each pair of texts, and how many tokens are cut off to have at most `max_length` of them.

    With `token_type_ids`, where the tokenizer gives them. What is cut off are the last tokens of the longer text,
    then of both in turn.
    """
    found = []
    for encoded, row, num_cut in _encoded(tokenizer, list(pairs), max_length, truncation="longest_first"):
        names = [name for name in ("input_ids", "token_type_ids") if name in encoded]
        found.append(({name: np.array(encoded[name][row], dtype=np.int32) for name in names}, num_cut))
    return found


def tokenize_with_places(tokenizer: "PreTrainedTokenizerBase", text: str) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of a text, without the special ones around it, and at which character each starts."""
    with _ONE_AT_A_TIME:
        encoded = tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False
        )
    starts = [start for start, _ in encoded["offset_mapping"]]
    return np.array(encoded["input_ids"], dtype=np.int32), np.array(starts, dtype=np.int64)


def count_tokens(tokenizer: "PreTrainedTokenizerBase", words: Sequence[str]) -> list[int]:
    """How many tokens each of the words of a text has, without special tokens."""
    with _ONE_AT_A_TIME:
        encoded = tokenizer(list(words), is_split_into_words=True, add_special_tokens=False, verbose=False)
    counts = Counter(encoded.word_ids())
    return [counts[index] for index in range(len(words))]


def tokenize_words(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[Sequence[str]], max_length: int
) -> list[tuple[np.ndarray, dict[int, int], int]]:
    """Token ids of each text, given as words; of its words the places of their first tokens; what was cut off."""
    tokens = []
    for encoded, row, num_cut in _encoded(tokenizer, list(map(list, texts)), max_length, is_split_into_words=True):
        places: dict[int, int] = {}
        for place, word in enumerate(encoded.word_ids(row)):
            if word is not None:
                places.setdefault(word, place)
        tokens.append((np.array(encoded["input_ids"][row], dtype=np.int32), places, num_cut))
    return tokens


def _encoded(
    tokenizer: "PreTrainedTokenizerBase",
    texts: list[Any],
    max_length: int | None,
    truncation: bool | str = True,
    **how: Any,
) -> list[tuple["BatchEncoding", int, int]]:
    """Where the tokens of each text are, at most `max_length` of them: in what, its row; and how many are cut off."""
    with _ONE_AT_A_TIME:
        whole = tokenizer(texts, truncation=False, verbose=False, **how)
        sizes = [len(ids) for ids in whole["input_ids"]]
        found = [(whole, row, 0) for row in range(len(texts))]
        long = [row for row, size in enumerate(sizes) if max_length is not None and size > max_length]
        if long:
            again = [texts[row] for row in long]
            cut = tokenizer(again, truncation=truncation, max_length=max_length, verbose=False, **how)
            for row, index in enumerate(long):
                found[index] = (cut, row, sizes[index] - len(cut["input_ids"][row]))
    return found


def padding_of(tokenizer: "PreTrainedTokenizerBase | None") -> int:
    """The token that pads: `load_tokenizer` has seen to it that there is one."""
    assert tokenizer is not None
    assert isinstance(tokenizer.pad_token_id, int)
    return tokenizer.pad_token_id


def pad(examples: Sequence[Example], pad_token_id: int, length: int | None = None) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` of examples, (num_examples, length), padded on the right.

    With `token_type_ids`, where the examples have them; of padding they are 0. `length` is that of the longest if it
    is not given. Without padding there is no mask: attention is quicker then, and needs less memory.
    """
    length = length or max(example.length for example in examples)
    input_ids = np.full((len(examples), length), pad_token_id)
    attention_mask = np.zeros((len(examples), length), dtype=np.int64)
    for row, example in enumerate(examples):
        input_ids[row, : example.length] = example.features["input_ids"]
        attention_mask[row, : example.length] = 1
    inputs = {"input_ids": torch.from_numpy(input_ids)}
    if "token_type_ids" in examples[0].features:
        token_types = np.zeros_like(input_ids)
        for row, example in enumerate(examples):
            token_types[row, : example.length] = example.features["token_type_ids"]
        inputs["token_type_ids"] = torch.from_numpy(token_types)
    return inputs if attention_mask.all() else inputs | {"attention_mask": torch.from_numpy(attention_mask)}


def made_up_inputs(model: nn.Module, num_examples: int, length: int, device: torch.device) -> dict[str, Tensor]:
    """A batch of no text, of the shape (num_examples, length), for the tracer and the tuner.

    The same operations at any size: a trace compares them one by one.
    """
    eos_token_id = getattr(getattr(model, "config", None), "eos_token_id", None)
    if isinstance(eos_token_id, list):
        eos_token_id = eos_token_id[0]
    inputs = {"input_ids": torch.zeros(num_examples, length, dtype=torch.long, device=device)}
    if eos_token_id is not None:
        inputs["input_ids"][:, 0] = eos_token_id  # BART and T5 read the text's class there
    # On an accelerator a single text is padded too, to a multiple of 8.
    if num_examples > 1 or device.type != "cpu" or is_card_traced():
        inputs["attention_mask"] = torch.ones(num_examples, length, dtype=torch.long, device=device)
        inputs["attention_mask"][-1, -1] = 0
    return inputs
