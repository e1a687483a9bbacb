"""The special tokens that a tokenizer puts around a text."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Frame:
    """The special tokens before and after a text."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    @staticmethod
    def of(tokenizer: "PreTrainedTokenizerBase") -> "Frame":
        """As the tokenizer puts them."""
        whole = tokenizer("a")["input_ids"]
        inside = tokenizer("a", add_special_tokens=False)["input_ids"]
        start = next(i for i in range(len(whole)) if whole[i : i + len(inside)] == inside)
        return Frame(tuple(whole[:start]), tuple(whole[start + len(inside) :]))

    @property
    def size(self) -> int:
        """How many they are."""
        return len(self.before) + len(self.after)

    def around(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens with the special ones."""
        return np.concatenate([self.before, tokens, self.after]).astype(np.int32)


def frame_of(tokenizer: "PreTrainedTokenizerBase") -> Frame:
    """The tokens before a text, as the tokenizer puts them, and after it: the one that ends a text, so that a model
    learns to end too.
    """
    frame = Frame.of(tokenizer)
    end = tokenizer.eos_token_id
    return Frame(frame.before, (end,)) if isinstance(end, int) else frame
