"""Texts of given lengths, made of real ones; and the lengths from which on a model computes otherwise."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from hf_accum.accumulation.example import Example

_THRESHOLDS = re.compile(
    r"^(original_)?max_position_embeddings$"  # rotary frequencies follow what is longer
    r"|window(_size)?$|^local_attention$|attention_chunk_size$|(attn|attention)_chunk_length$|^block_size$"
)
_MOST_THRESHOLDS = 3


def resized(example: Example, length: int) -> Example:
    """A text of another length, in tokens: its first and its last, and between them those between, over and over.

    So special tokens stand where they belong. Features that are arrays with a value for each token (labels, say) are
    made longer or shorter likewise; `places` are those of tokens.
    """
    inner = example.length - 2
    if inner > 0 and length > 1:
        of = np.array([0, *(1 + np.arange(length - 2) % inner), example.length - 1])
    else:
        of = np.arange(length) % example.length
    features = {name: _resized(name, value, of, example.length) for name, value in example.features.items()}
    return replace(example, length=length, weight=example.weight * length / example.length, features=features)


def _resized(name: str, value: Any, of: np.ndarray, length: int) -> Any:
    if name == "places":
        chosen = np.zeros(length, dtype=bool)
        chosen[value] = True
        places = np.flatnonzero(chosen[of])
        return places if len(places) else np.array([len(of) - 1])
    is_of_tokens = isinstance(value, np.ndarray) and len(value) == length
    return value[of] if is_of_tokens else value


def thresholds(config: Any, max_length: int) -> dict[int, str]:
    """The lengths that a transformers config names, and that texts of a run are longer than: each with its field.

    At most three, the lowest. BigBird's attention is sparse in texts of more blocks than a token sees.
    """
    found: dict[int, str] = {}
    fields = config.to_dict()
    for name, value in _numbers(fields):
        is_of_tokens = _THRESHOLDS.search(name)
        if name == "block_size" and "num_random_blocks" in fields:
            value, name = value * (5 + 2 * fields["num_random_blocks"]), "(5 + 2 * num_random_blocks) * block_size"
        if is_of_tokens and 0 < value < max_length:
            found.setdefault(value, name)
    return dict(sorted(found.items())[:_MOST_THRESHOLDS])


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """The whole numbers of a config, those in its lists and groups too, with the names of their fields."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _numbers(value)
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, int) and not isinstance(number, bool):
                yield name, number
