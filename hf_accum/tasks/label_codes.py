"""Labels of the flags: names, or codes with their names (1=immediate,2=urgent)."""

import re
from collections.abc import Sequence

from hf_accum.errors import UserError

_CODE = re.compile(r"\s*(-?\d{1,18})\s*=\s*(.*\S)\s*")


def codes_of(labels: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names among the labels of the flags, in order, and the whole number that the data has for each (or none).

    Raises:
        UserError: if some have codes and others not, or a code stands twice.
    """
    found = [_CODE.fullmatch(label) for label in labels]
    if not any(found):
        return tuple(labels), ()
    pairs = [(match[2], str(int(match[1]))) for match in found if match]
    names, codes = tuple(name for name, _ in pairs), tuple(code for _, code in pairs)
    if len(pairs) < len(labels) or len(set(codes)) < len(codes) or len(set(names)) < len(names):
        raise UserError(
            f"`labels` {','.join(labels)}: has to be names, or a different number and name for each label, as "
            "1=immediate,2=urgent,3=routine"
        )
    if any(name.lstrip("-").isdecimal() for name in names):
        raise UserError(f"`labels` {','.join(labels)}: a number is given another number as its name: give words")
    return names, codes


def names_of(labels: Sequence[str], label_column: str | Sequence[str] | None) -> tuple[str, ...]:
    """The names that the flags alone tell: of several label columns, their own; none where only the data has them."""
    if not labels and not isinstance(label_column, str | None) and len(label_column) > 1:
        return tuple(label_column)
    return codes_of(labels)[0]


def as_flag(names: Sequence[str], codes: Sequence[str]) -> list[str]:
    """The inverse of `codes_of`."""
    return [f"{code}={name}" for code, name in zip(codes, names, strict=True)] if codes else list(names)
