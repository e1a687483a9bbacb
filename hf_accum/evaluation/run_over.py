"""A forward over all examples of a stream, cut as training cuts them, smaller where memory runs out."""

from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import Any, TypeVar

import torch
from torch import nn

from hf_accum.accumulation.example import Example, inputs_of
from hf_accum.accumulation.splitting import Cutter
from hf_accum.data.stream import WindowStream
from hf_accum.device.out_of_memory import Failure, classify, release
from hf_accum.device.timer import Stopwatch
from hf_accum.errors import OutOfMemory, first_line
from hf_accum.models.modes import keeping_modes

R = TypeVar("R")


class LeftEarly(RuntimeError):
    """A pass that was to stop has, on all ranks alike; what it found is of some examples, and of no use."""


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
    training are, by what forwards take as soon as that is learned, and smaller where one runs out of memory. Nothing
    of that changes the training.

    A stream that is `stopping` is left after this rank's batch, and on the others after their part of the window.

    Raises:
        UserError: for a bad row.
        OutOfMemory: if a single example does not fit.
        LeftEarly: if any rank was asked to stop before the last window was through.
    """
    is_asked = stream.stopping or (lambda: False)
    cutter = cutter.for_forwards()
    device = next(model.parameters()).device
    results: list[R] = []
    weight = 0.0
    is_left = False
    with keeping_modes(model), torch.no_grad():
        model.eval()
        for window in stream:
            is_left = is_left or stream.stop_is_agreed or is_asked()
            if is_left:
                continue  # to the end of the stream, which all ranks leave together
            weight += window.num_items
            pieces = in_pieces(inputs_of(window.examples), forward, cutter, device)
            of_pieces = list(takewhile(lambda _: not is_asked(), pieces))
            if is_asked():
                is_left = True
            elif join is None:
                results += of_pieces
            elif window.examples:
                results.append(join(window.examples, of_pieces))
            cutter.window_done()
    if stream.stopping is not None and any(left for (left,) in stream.ranks.gather([int(is_left)])):
        raise LeftEarly("asked to stop")
    return results, weight


def in_pieces(
    examples: Sequence[Example],
    forward: Callable[[Sequence[Example], int], R],
    cutter: Cutter,
    device: torch.device,
    during: str = "evaluation",
) -> Iterator[R]:
    """`forward(examples, length)` over all examples in batches that fit, as the cutter has learned by then.

    It learns how long they take, once it is told that the window is done.

    Raises:
        OutOfMemory: if a single example does not fit `during` what it is for.
    """
    left = cutter.cut(examples)
    ran_out = False  # for certain: what libraries also say for other reasons is memory then too
    while left:
        batch = left[0]
        length = cutter.padded(batch[0].length)
        stopwatch = Stopwatch.on(device)
        try:
            result = forward(batch, length)
        except Exception as error:
            failure = classify(error)
            ran_out = ran_out or failure is Failure.OUT_OF_MEMORY
            if failure is Failure.OTHER or (len(batch) == 1 and not ran_out):
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
            if cutter.costs is not None and stopwatch is not None:
                stopwatch.stop()
                cutter.costs.observe(len(batch), length, stopwatch)
            yield result
            left = left[1:]
