"""Errors of more than one module, and how they are told."""


class RankFailed(RuntimeError):
    """Another rank failed; the message says which, and what of."""


class Stopped(RuntimeError):
    """A run that was asked to end early has; the message says by what."""


class NotFinite(RuntimeError):
    """The loss or the gradient of a window is not finite; the message says where to look."""


class OutOfMemory(RuntimeError):
    """The smallest thing that could be tried does not fit; the message says what would."""


def first_line(error: BaseException) -> str:
    """An error's type and the first line of its message, for a message of our own."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
