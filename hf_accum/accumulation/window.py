"""The window: the examples of one optimizer step.

A window is defined by which examples it holds over all ranks, and its gradient by nothing else:

    g = (1 / W) * sum over items i of  w_i * grad loss_i,        W = sum of w_i over all ranks

W is counted before the first forward. How the window is run, in which micro-batches and how often, is a matter of its
`WindowExecution`, and never changes the gradient.
"""

from dataclasses import dataclass, field
from typing import Any

from hf_accum.accumulation.example import Example


@dataclass(frozen=True)
class Window:
    """Which examples one optimizer step sees. Counts and `digest` are over all ranks, `examples` are this rank's own.

    `num_items` is W, the total weight. `digest` is one of the ids of all examples, in whatever order. A rank without
    examples computes `dummy`, which counts for nothing.
    """

    step: int
    epoch: int
    seed: int
    examples: tuple[Example, ...]
    dummy: Example
    rank: int
    num_examples: int
    num_items: float
    num_tokens: int
    digest: str
    state: Any = field(default=None, repr=False)
    """The place in the data: the state of the stream behind this window, from which it goes on."""
