"""One example, ready for a batch; and what its length is counted in."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Origin:
    """Where an example that is judged comes from: the row as it was prepared, and its group.

    The group is a number of 64 bits that the rows of one patient, say, have in common; None: it is one by itself.
    """

    row: Any
    group: int | None = None


@dataclass(frozen=True)
class Example:
    """One example, ready for a batch.

    `length` is in tokens (of an image in patches), `weight` that of its items, `features` what its batch is made of.
    `num_truncated_tokens` were cut off to keep to the longest length allowed. Of a pair of texts, each of which goes
    through the model by itself, the texts are the `parts`, and its `length` is the sum of theirs; so are the windows
    of a long text.
    """

    id: str
    length: int
    weight: float
    features: Mapping[str, Any]
    num_truncated_tokens: int = 0
    parts: "tuple[Example, ...]" = ()
    origin: Origin | None = None
    """Of a held-out one, where its task looks at each."""


def inputs_of(examples: Iterable[Example]) -> list[Example]:
    """What goes through the model for examples: their parts, or they themselves."""
    return [part for example in examples for part in example.parts or (example,)]


@dataclass(frozen=True)
class Lengths:
    """What the length of an example is counted in, which flag limits it, and whether examples differ in it.

    The flag's values are multiples of `flag_step`. `cut_by` is the flag by which longer examples lose their end.
    """

    unit: str = "tokens"
    flag: str = "max_length"
    vary: bool = True
    flag_step: int = 1
    cut_by: str = "max_length"

    def of(self, length: int) -> str:
        """For messages, behind what has the length: " of 7 tokens"; nothing where a loop of one's own has none."""
        return "" if length == 1 and not self.flag else f" of {length} {self.unit}"

    @property
    def what_needs_less(self) -> str:
        """For messages, where a single example does not fit."""
        if not self.flag:
            return "gradient checkpointing, smaller examples, or another model need less"
        return f"`gradient_checkpointing true`, a smaller `{self.flag}` or `lora.rank`, or another model need less"


TOKENS = Lengths()
OF_ONES_OWN = Lengths(flag="")
"""Of the batches of a loop of one's own, which has no flags."""
