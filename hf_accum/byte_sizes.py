"""Bytes as people write them, and what the length of an example is counted in."""

import math
import re
from fractions import Fraction

from hf_accum.errors import UserError

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4} | {
    "ki": 1024,
    "mi": 1024**2,
    "gi": 1024**3,
    "ti": 1024**4,
}


def parse_bytes(text: str | int) -> int:
    """Bytes of a text as 6GiB, 500MB or 123456789, or of that number.

    Raises:
        UserError: if it is none of these, or not above 0.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?i?)b?\s*", str(text), re.IGNORECASE)
    unit = _UNITS.get(match[2].lower()) if match else None
    num_bytes = 0 if match is None or unit is None else int(Fraction(match[1]) * unit)
    if not 0 < num_bytes < 2**63:
        raise UserError(f"{text!r}: has to be bytes, as 6GiB, 500MB or 6442450944")
    return num_bytes


def format_bytes(num_bytes: float) -> str:
    """Bytes for people: 5.97 GiB, 312 MiB, 87 KiB."""
    if abs(num_bytes) < 2**20:
        return f"{math.ceil(num_bytes / 2**10):,} KiB"
    return f"{num_bytes / 2**30:.2f} GiB" if abs(num_bytes) >= 2**30 else f"{num_bytes / 2**20:,.0f} MiB"
