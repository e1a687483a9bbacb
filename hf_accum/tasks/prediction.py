"""What a model predicts of a row: nothing of a label is needed, or looked at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from torch import nn

from hf_accum.accumulation.example import Example
from hf_accum.data.formats.rows import Row

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")


@dataclass(frozen=True)
class Told:
    """Of a row: the columns added to it, images among them; and what is to be said of it, and counted."""

    columns: Mapping[str, Any]
    images: "Mapping[str, Image]" = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


class Predictor(Protocol[T]):
    """A task on rows without labels. A recipe makes it of its flags and its task: `predictor(config, task)`.

    What is told of a row depends on that row alone: not on those that it shares a batch with.
    """

    @property
    def adds(self) -> tuple[str, ...]:
        """The columns that `told` may add."""
        ...

    @property
    def most_rows(self) -> int:
        """How many rows are in memory at once, at most."""
        ...

    @property
    def image_column(self) -> str | None:
        """The column with an image, whose bytes JSON has as base64; None of texts."""
        ...

    @property
    def writes(self) -> bool:
        """Whether `forward` goes on from what the model tells, and keeps what it computed: a text is written."""
        ...

    def prepare(self, row: Row) -> T:
        """What is kept of a row.

        Raises:
            BadRow: if it cannot be used.
        """
        ...

    def encode(self, rows: Sequence[tuple[str, T]]) -> list[Example]:
        """An example of each (id, prepared row), which may have parts; each goes through the model."""
        ...

    def forward(self, model: nn.Module, examples: Sequence[Example], length: int) -> list[Any]:
        """What the model gives for examples or parts, padded to a length; on the CPU."""
        ...

    def told(self, example: Example, outputs: Sequence[Any]) -> Told:
        """What is told of a row, by what `forward` gave for its example, or for each of its parts."""
        ...
