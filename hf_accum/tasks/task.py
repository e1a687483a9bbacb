"""What a recipe gives: a task, which makes examples of rows, computes with a model, and judges it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar, runtime_checkable

from torch import Tensor, nn

from hf_accum.accumulation.example import Example
from hf_accum.accumulation.splitting import Cutter
from hf_accum.data.source import Row
from hf_accum.data.stream import WindowStream
from hf_accum.distributed.ranks import Ranks
from hf_accum.evaluation.judge import Predicted
from hf_accum.models.usage import Usage
from hf_accum.tuner.workload import Computation

T = TypeVar("T")


class Task(Computation, Protocol[T]):
    """What is made of rows, what is computed with a model, and how it is judged.

    `summed_loss` and `predict` are the one forward of the task: the loop, the evaluation, the tuner and the plan call
    them. Who adds a task writes these methods, in a room of its own.
    """

    def prepare(self, row: Row) -> T | None:
        """What is kept of a row; None leaves it out.

        Raises:
            BadRow: if it cannot be used.
        """
        ...

    def encode(self, rows: Sequence[tuple[str, T]]) -> list[Example]:
        """Examples of (id, prepared row)s."""
        ...

    def collate(self, examples: Sequence[Example], length: int) -> Any:
        """A batch on the CPU, padded to a length."""
        ...

    def evaluate(
        self, model: nn.Module, held_out: WindowStream[T], *, ranks: Ranks, cutter: Cutter
    ) -> dict[str, Any]:
        """The figures of a model on all examples of a stream, each used once. A collective."""
        ...


@runtime_checkable
class Shows(Protocol):
    """A task that tells of each held-out example; these have an `origin` then."""

    def show(self, example: Example) -> Any:
        """What shows an example to a person, by name: its text, say."""
        ...

    def evaluate(
        self,
        model: nn.Module,
        held_out: WindowStream[Any],
        *,
        ranks: Ranks,
        cutter: Cutter,
        folder: Path | None = None,
    ) -> dict[str, Any]:
        """As that of any task; with a folder also intervals, and files there with each example."""
        ...


@runtime_checkable
class Explains(Protocol):
    """A task that says how its model is used by others, who have its weights and nothing of this project."""

    def usage(self) -> Usage:
        """As far as the task knows."""
        ...


@runtime_checkable
class Calibrates(Protocol):
    """A task that has something to fit on a part of the data that is neither trained on nor held out."""

    def calibrate(self, model: nn.Module, part: WindowStream[Any], *, ranks: Ranks, cutter: Cutter) -> Self:
        """The task with that fitted, as a model's predictions want it. A collective."""
        ...


@runtime_checkable
class PoolsParts(Protocol):
    """A task whose examples may have parts that go through the model by themselves, and are pooled to one output."""

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        """Those of the parts in a batch, (num_parts, width)."""
        ...

    def pooled_loss(self, examples: Sequence[Example], outputs: Tensor) -> Tensor:
        """The loss of whole examples, summed, by the outputs of all their parts, one example after the other."""
        ...

    def whole(self, examples: Sequence[Example], parts: Mapping[str, Tensor]) -> Predicted:
        """What is predicted for examples, by the outputs of their parts, by id."""
        ...
