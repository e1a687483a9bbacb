"""Errors of more than one module, and how they are told."""

import reprlib
from typing import Any

_LONGEST = 400  # characters
_shortened = reprlib.Repr()
_shortened.maxstring = _shortened.maxother = _shortened.maxlong = 80
_shortened.maxlevel = 3


OF_THE_PROGRAM = (AttributeError, NameError, AssertionError, MemoryError)
"""What is a fault of the program or the machine where a file is read; it can be wrong itself in any other way."""


class UserError(ValueError):
    """What a user did wrong: the message names the value, the rule and the way out.

    >>> from hf_accum import UserError, windows_of
    >>> from accelerate import Accelerator
    >>> try:
    ...     windows_of(Accelerator(cpu=True), [], batches_per_step=0)
    ... except UserError as error:
    ...     print(error)
    `batches_per_step` 0: has to be at least 1
    """


class RankFailed(RuntimeError):
    """Another rank failed; the message says which, and what of."""


class ReadingFailed(RankFailed):
    """Another rank could not read its data; all ranks know of it after the same window."""


class Stopped(RuntimeError):
    """A run that was asked to end early has; the message says by what."""


class Previewed(RuntimeError):
    """A run that was only to show its first rows has shown them."""


class NotFinite(RuntimeError):
    """The loss or the gradient of a window is not finite; the message says where to look."""


class OutOfMemory(RuntimeError):
    """The smallest thing that could be tried does not fit; the message says what would.

    >>> import torch
    >>> from hf_accum import OutOfMemory, find_capacity
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> try:
    ...     find_capacity(model, optimizer, lambda m, x: m(x).sum(), torch.ones(1, 64), memory_budget="20KiB")
    ... except OutOfMemory as error:
    ...     print(str(error).split(":")[0])
    not even one example fits
    """


def first_line(error: BaseException) -> str:
    """An error's type and the first line of its message, for a message of our own."""
    lines = [line.strip() for line in f"{type(error).__name__}: {error}".splitlines()]
    while len(lines) > 1 and (lines[0].endswith(":") or not lines[0]):  # what it says comes after that
        lines[:2] = [" ".join(lines[:2]).strip()]
    return shortened(lines[0], _LONGEST)


def printable(text: str, keep: str = "") -> str:
    """A text without characters that a terminal would obey, but for those to `keep`: it may quote the data."""
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


def shortened(text: str, longest: int = 80) -> str:
    """A text of at most so many characters, for a message: of a value that may be a whole document."""
    return text if len(text) <= longest else f"{text[: longest - 4]} ..."


def shown(value: Any) -> str:
    """A value for a message, shortened: it may be a whole document, or lists in lists without end."""
    return _shortened.repr(value)
