"""Windows of real lengths, as a run would cut them: for a plan of what they leave in the allocator."""

import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from hf_accum.accumulation.capacity import Capacity, WorkingCapacity
from hf_accum.accumulation.example import Example
from hf_accum.accumulation.splitting import PADDED_ON_CARDS, Cutter
from hf_accum.errors import UserError

if TYPE_CHECKING:
    from hf_accum.tuner.prediction import Prediction

NUM_WINDOWS = 100


def read_lengths(path: Path) -> list[int]:
    """The lengths of a file, one on each line, in tokens.

    Raises:
        UserError: if it cannot be read, or a line is not a whole number from 1 on.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"`lengths` {path}: cannot be read ({error})") from error
    lengths: list[int] = []
    for number, line in enumerate(lines, start=1):
        if not re.fullmatch(r"0*[1-9]\d{,8}", line.strip(), re.ASCII):
            raise UserError(f"`lengths` {path}, line {number}: {line!r} has to be a number of tokens, from 1 on")
        lengths.append(int(line))
    if not lengths:
        raise UserError(f"`lengths` {path}: has to have a number of tokens on each line, it is empty")
    return lengths


def windows_of(
    lengths: Sequence[int], num_examples: int, max_length: int, prediction: "Prediction", largest: int
) -> list[list[tuple[int, int]]]:
    """Up to 100 windows of so many examples, in the order of the lengths: each window's micro-batches, as (number of
    examples, padded length). Longer ones are cut off at `max_length`.

    A run learns the bytes that fit from `largest`, the most examples of the longest length.
    """
    capacity = Capacity(num_examples, prediction.training, prediction.needed_bytes(largest, max_length))
    cutter = Cutter(WorkingCapacity(capacity), multiple_of=PADDED_ON_CARDS, max_length=max_length)
    examples = (Example(str(index), min(length, max_length), 1, {}) for index, length in enumerate(lengths))
    windows: list[list[tuple[int, int]]] = []
    while len(windows) < NUM_WINDOWS and (window := list(islice(examples, num_examples))):
        pieces = cutter.cut(window)
        windows.append([(len(piece), cutter.padded(max(example.length for example in piece))) for piece in pieces])
    return windows
