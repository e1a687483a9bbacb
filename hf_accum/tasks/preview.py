"""What a person is shown of an example: lines of a name and a text, as a task's `preview` gives them."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from hf_accum.accumulation.example import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Line = tuple[str, str]
"""What it is, and how the model sees it."""


@runtime_checkable
class Previews(Protocol):
    """A task that shows its examples to a person."""

    def preview(self, example: Example) -> list[Line]:
        """How the model sees an example, as it is drawn: its tokens, say, and its label by name."""
        ...


def decoded(tokenizer: "PreTrainedTokenizerBase | None", ids: np.ndarray) -> str:
    """Tokens as a text, with the special ones."""
    assert tokenizer is not None
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def runs_of(tokenizer: "PreTrainedTokenizerBase | None", ids: np.ndarray, kinds: np.ndarray) -> Iterator[Line]:
    """Tokens as texts, one for each run of the same kind; `kinds` names that of each token."""
    places = range(len(ids))
    for kind, of_kind in groupby(places, key=lambda place: str(kinds[place])):
        yield kind, decoded(tokenizer, ids[list(of_kind)])


def hidden_tokens(tokenizer: "PreTrainedTokenizerBase | None", seen: Sequence[int], right: Sequence[int]) -> Line:
    """The tokens to guess, and what stands in the place of each."""
    assert tokenizer is not None
    names: Any = tokenizer.convert_ids_to_tokens
    pairs = zip(names(list(map(int, right))), names(list(map(int, seen))), strict=True)
    told = (f"{token} ({'as it is' if token == other else f'seen as {other}'})" for token, other in pairs)
    return "learned", ", ".join(told)


def words_with_tags(
    words: Sequence[str], tags: Sequence[Sequence[str]], first: int, last: int, outside: str
) -> Iterator[Line]:
    """The words of a part of a text, each with its tags (one for each layer) but for those `outside`; those before
    `first` and from `last` on are only read.
    """
    told = [
        "".join([word, *(f"[{tag}]" for tag in of_word if tag != outside)])
        for word, of_word in zip(words, tags, strict=True)
    ]
    for name, start, end in (("context", 0, first), ("words", first, last), ("context", last, len(words))):
        if start < end:
            yield name, " ".join(told[start:end] if name == "words" else words[start:end])
