"""A forward over all examples of a stream, cut as training cuts them, smaller where memory runs out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn

from hf_accum.accumulation.capacity import WorkingCapacity
from hf_accum.accumulation.example import Example, inputs_of
from hf_accum.accumulation.splitting import Cutter
from hf_accum.data.stream import WindowStream
from hf_accum.device.out_of_memory import Failure, classify, release
from hf_accum.errors import OutOfMemory, first_line
from hf_accum.models.modes import keeping_modes

R = TypeVar("R")


def run_over(
    model: nn.Module,
    stream: WindowStream[Any],
    forward: Callable[[Sequence[Example], int], R],
    cutter: Cutter,
    join: Callable[[Sequence[Example], list[R]], R] | None = None,
) -> tuple[list[R], float]:
    """`forward(examples, length)` over all of this rank's examples of a stream, and the weight of those of all ranks.

    Of examples with parts it is their parts. `join(examples, results)` makes one result of those of all parts of some
    examples.

    In eval mode and without gradients; the model is left in the mode it was in. Batches are cut as micro-batches of
    training are, smaller where one runs out of memory, which changes nothing for the training.

    Raises:
        UserError: for a bad row.
        OutOfMemory: if a single example does not fit.
    """
    cutter = replace(cutter, capacity=WorkingCapacity(cutter.capacity.tuned))
    device = next(model.parameters()).device
    results: list[R] = []
    weight = 0.0
    with keeping_modes(model), torch.no_grad():
        model.eval()
        for window in stream:
            weight += window.num_items
            of_pieces = in_pieces(inputs_of(window.examples), forward, cutter, device)
            if join is None:
                results += of_pieces
            elif window.examples:
                results.append(join(window.examples, list(of_pieces)))
    return results, weight


def in_pieces(
    examples: Sequence[Example],
    forward: Callable[[Sequence[Example], int], R],
    cutter: Cutter,
    device: torch.device,
    during: str = "evaluation",
) -> Iterator[R]:
    """`forward(examples, length)` over all examples in batches that fit, as the cutter has learned by then.

    Raises:
        OutOfMemory: if a single example does not fit `during` what it is for.
    """
    left = cutter.cut(examples)
    while left:
        batch = left[0]
        length = cutter.padded(batch[0].length)
        try:
            yield forward(batch, length)
        except Exception as error:
            if classify(error) is not Failure.OUT_OF_MEMORY:
                raise
            if len(batch) == 1:
                raise OutOfMemory(
                    f"{during}: a single example of {length} {cutter.lengths.unit} does not fit into memory "
                    f"({first_line(error)}); a smaller `{cutter.lengths.flag}` needs less"
                ) from error
            release(error, device)
            cutter.capacity.out_of_memory(len(batch), length)
            left = cutter.cut([example for piece in left for example in piece])
        else:
            left = left[1:]
