"""Errors of more than one module, and how they are told."""

_LONGEST = 400  # characters


class RankFailed(RuntimeError):
    """Another rank failed; the message says which, and what of."""


class OutOfMemory(RuntimeError):
    """The smallest thing that could be tried does not fit; the message says what would."""


def first_line(error: BaseException) -> str:
    """An error's type and the first line of its message, for a message of our own."""
    lines = f"{type(error).__name__}: {error}".splitlines()
    return shortened(next(line for line in lines if line), _LONGEST)


def shortened(text: str, longest: int = 80) -> str:
    """A text of at most so many characters, for a message: of a value that may be a whole document."""
    return text if len(text) <= longest else f"{text[: longest - 4]} ..."
