"""Lists of labels: written out as text, as pandas writes them, or a 0 or 1 for each label."""

import re
from collections.abc import Sequence
from typing import Any

# Possessive, so that a long text that is no list is known as one in a single pass.
_ITEM = (
    r"""'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+"|[-+]?(?:\d++(?:\.\d*+)?|\.\d++)(?:[eE][-+]?\d++)?|[Tt]rue|[Ff]alse"""
)
_LIST = re.compile(
    rf"\[\s*+(?:(?:{_ITEM})(?:\s*+,\s*+|\s++))*+(?:{_ITEM})?\s*+\]"
    rf"|\(\s*+(?:(?:{_ITEM})\s*+,\s*+)++(?:{_ITEM})?\s*+\)"
)
_ITEMS = re.compile(_ITEM)
_ESCAPED = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U000[0-9a-fA-F]{5}|U0010[0-9a-fA-F]{4}|.)", re.DOTALL)
_CHARACTERS = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\\": "\\", "'": "'", '"': '"', "/": "/"}
_BINARY = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1, "no": 0, "yes": 1}


def written_list(text: str) -> list[Any] | None:
    """The items of a list that was written out as text; None where the text is no such thing.

    As Python writes lists and tuples, JSON arrays, and numpy arrays (without commas): of quoted texts, numbers and
    truth values. `[fever, cough]`, without quotation marks, is none.

    >>> written_list("['a', 'b']"), written_list("[0 1 0]"), written_list("[true, false]"), written_list("[a, b]")
    (['a', 'b'], [0, 1, 0], [True, False], None)
    """
    stripped = text.strip()
    if stripped[:1] not in ("[", "(") or not _LIST.fullmatch(stripped):
        return None
    return [_item(item) for item in _ITEMS.findall(stripped)]


def _item(text: str) -> Any:
    if text[0] in "'\"":
        plain = _ESCAPED.sub(_unescaped, text[1:-1])
        return plain.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")  # JSON has 💊 as a pair
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return int(text) if text.lstrip("+-").isdecimal() else float(text)


def _unescaped(match: re.Match[str]) -> str:
    escaped = match[1]
    return chr(int(escaped[1:], 16)) if len(escaped) > 1 else _CHARACTERS.get(escaped, match[0])


def binary(value: Any) -> int | None:
    """0 or 1 of a number, a truth value, or one of 0, 1, true, false, yes, no as text; None of all else."""
    if isinstance(value, str):
        return _BINARY.get(value.strip().lower())
    return int(value) if isinstance(value, int | float) and value in (0, 1) else None


def is_of_numbers(items: Sequence[Any]) -> bool:
    """Whether all items of a list, of one at least, are numbers or truth values."""
    return bool(items) and all(isinstance(item, int | float) for item in items)


def is_multi_hot(items: Sequence[Any]) -> bool:
    """Whether all are numbers 0 and 1, or truth values."""
    return is_of_numbers(items) and all(item in (0, 1) for item in items)
