"""What the values of flags have to keep to, whatever the flag: readable texts without secrets, sane numbers."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

from hf_accum.config.secrets import holds_secret
from hf_accum.errors import UserError

LARGEST_COUNT = 10**9
"""Of anything that a flag counts: more is a slip of the pen."""


def require(holds: bool, flag: str, value: object, rule: str) -> None:
    """Refuse a flag's value.

    Raises:
        ValueError: naming the flag, its value and the rule, if it does not hold.
    """
    if not holds:
        raise UserError(f"`{flag}` {value}: has to be {rule}")


def require_count(flag: str, value: int, rule: str = "at least 1", least: int = 1) -> None:
    """Refuse a number of things that is below what the rule says, or absurdly large.

    Raises:
        ValueError: naming the flag, its value and the rule.
    """
    require(value >= least, flag, value, rule)
    require(value <= LARGEST_COUNT, flag, value, f"at most {LARGEST_COUNT:,}")


def require_finite(flag: str, value: float, least: float, most: float) -> None:
    """Refuse a number that is not finite and above 0, or beyond which nothing is learned.

    Raises:
        ValueError: naming the flag, its value and the rule.
    """
    require(value > 0 and math.isfinite(value), flag, value, "a finite number above 0")
    require(value >= least, flag, value, f"at least {least:g}")
    require(value <= most, flag, value, f"at most {most:g}")


def check_texts(values: Mapping[str, Any]) -> None:
    """Refuse texts among the values of flags that hold a secret, or cannot be written down.

    Raises:
        ValueError: naming the flag, and of a secret nothing else.
    """
    for flag, text in _texts(values):
        _check_text(flag, text)


def _texts(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each text among the flags' values, with its flag."""
    for flag, value in values.items():
        if is_dataclass(value):
            yield from ((f"{flag}.{name}", text) for name, text in _texts(vars(value)))
        elif isinstance(value, str):
            yield flag, value
        elif isinstance(value, list):
            yield from ((flag, item) for item in value if isinstance(item, str))


def _check_text(flag: str, text: str) -> None:
    if holds_secret(text):  # and is not repeated
        raise UserError(
            f"`{flag}` ***: has to be without tokens and passwords, which would be seen in config.yaml, by trackers "
            "and in the list of processes: give them by the environment (HF_TOKEN) or by `hf auth login`"
        )
    require("\0" not in text, flag, repr(text), "without NUL characters")
    try:
        text.encode()
    except UnicodeEncodeError:
        require(False, flag, ascii(text), "UTF-8")
