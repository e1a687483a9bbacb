"""Checks that every flag has in common: numbers keep to their range, texts can be written and hold no secret."""

import dataclasses
import math
import numbers
import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from jsonargparse.typing import PositiveFloat, PositiveInt, restricted_number_type

from hf_accum.errors import UserError


def require(holds: bool, flag: str, value: object, rule: str) -> None:
    """Refuse a flag's value.

    Raises:
        UserError: naming the flag, its value and the rule, if it does not hold.
    """
    if not holds:
        raise UserError(f"`{flag}` {value}: has to be {rule}")


def require_not_empty(config: object, *flags: str, rule: str = "left out, or not empty") -> None:
    """Refuse empty texts.

    Raises:
        UserError: naming the first flag whose text is empty.
    """
    for flag in flags:
        require(getattr(config, flag) != "", flag, "''", rule)


# Numbers

LARGEST_COUNT = 10**9
"""The largest number that a flag may count to: more is a typing error."""


def number(*types_and_rules: tuple[Any, str], other: tuple[object, ...] = ()) -> dict[str, Any]:
    """The metadata of a dataclass's field that holds a number.

    Args:
        types_and_rules: Number types of jsonargparse that accept the value, each with its rule in words.
        other: Values that are no number and are allowed too: None or `auto`.
    """
    return {"types_and_rules": types_and_rules, "other": other}


# The annotations of fields are int and float, since jsonargparse applies its types to the command line only, and says
# no rule. `check_numbers` applies them whenever a configuration is made.
_AT_MOST = (restricted_number_type(None, int, ("<=", LARGEST_COUNT)), f"at most {LARGEST_COUNT:,}")
COUNT = number((PositiveInt, "at least 1"), _AT_MOST)
COUNT_OR_NULL = number((PositiveInt, "at least 1, or null"), _AT_MOST, other=(None,))
COUNT_OR_AUTO = number((PositiveInt, "auto, or at least 1"), _AT_MOST, other=("auto",))
LENGTH = number((restricted_number_type(None, int, (">=", 2)), "at least 2"), _AT_MOST)
ABOVE_0 = number((PositiveFloat, "a finite number above 0"))
ABOVE_0_OR_NULL = number((PositiveFloat, "a finite number above 0, or null"), other=(None,))
BELOW_1 = (restricted_number_type(None, float, [(">=", 0.0), ("<", 1.0)]), "in [0, 1)")


def check_numbers(config: object, prefix: str = "") -> None:
    """Refuse numbers that do not keep to the types of their fields. `prefix` stands before the flags' names: `lora.`

    Raises:
        UserError: naming the flag, its value and the rule.
    """
    for name, metadata in _numbers_of(type(config)).items():
        flag, value = prefix + name, getattr(config, name)
        if value in metadata["other"]:
            continue
        for kind, rule in metadata["types_and_rules"]:
            is_whole = issubclass(kind, int)
            of_type = isinstance(value, numbers.Integral if is_whole else numbers.Real) and not isinstance(
                value, bool
            )
            require(of_type, flag, value, "a whole number" if is_whole else "a number")
            require(_accepts(kind, value), flag, value, rule)


def _accepts(kind: Any, value: Any) -> bool:
    """Whether a number is finite, and of a type of jsonargparse."""
    try:
        accepted = kind(value)
        return isinstance(accepted, int) or math.isfinite(accepted)
    except (ValueError, OverflowError):
        return False


@cache
def _numbers_of(config_class: type) -> dict[str, Mapping[str, Any]]:
    """The metadata of each field with a number. A subclass that changes a field's default keeps its metadata."""
    found: dict[str, Mapping[str, Any]] = {}
    for base in reversed(config_class.__mro__):
        fields = dataclasses.fields(base) if dataclasses.is_dataclass(base) else ()
        found |= {field.name: field.metadata for field in fields if "types_and_rules" in field.metadata}
    return found


def require_count(flag: str, value: int, rule: str = "at least 1", least: int = 1) -> None:
    """Refuse a number of things that is below what the rule says, or absurdly large.

    Raises:
        UserError: naming the flag, its value and the rule.
    """
    require(value >= least, flag, value, rule)
    require(value <= LARGEST_COUNT, flag, value, f"at most {LARGEST_COUNT:,}")


# Texts


def check_texts(values: Mapping[str, Any]) -> None:
    """Refuse texts among the values of flags that hold a secret, or cannot be written down.

    Raises:
        UserError: naming the flag, and of a secret nothing else.
    """
    for flag, text in _texts(values):
        _check_text(flag, text)


def _texts(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each text among the flags' values, with its flag."""
    for flag, value in values.items():
        if dataclasses.is_dataclass(value):
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


# Secrets

_SECRETS = re.compile(
    r"""
      (?<=://) [^/\s?\#]+ (?=@)                                   # user:password@ or token@ in an address
    | \b (?: hf_ | api_org_ ) [A-Za-z0-9]{20,}                     # Hugging Face
    | (?<= [?&;] ) (?: [\w-]* (?: token | secret | password | passwd | signature | credential ) | sig
      | (?: [\w-]* (?: api | access | account ) [_-]? )? key ) = [^&;\s'"]+    # of an address's query
    | (?<= bearer\s ) [\w.~+/=-]{8,}
    """,
    re.VERBOSE | re.IGNORECASE,
)
_SECRET_NAMES = re.compile(r"(TOKEN|API_KEY|SECRET|SECRET_KEY|SECRET_ACCESS_KEY|PASSWORD)$")
_SHORTEST = 8  # characters of a variable's value: a shorter one may be an ordinary word


def holds_secret(text: str) -> bool:
    """Whether a text holds a token, a password in an address, or a secret of the environment (HF_TOKEN, say)."""
    return without_secrets(text) != text


def without_secrets(text: str) -> str:
    """A text with *** in the place of each secret."""
    for secret in _of_environment():
        text = text.replace(secret, "***")
    return _SECRETS.sub("***", text)


def _of_environment() -> list[str]:
    values = {value for name, value in os.environ.items() if _SECRET_NAMES.search(name.upper())}
    return sorted((value for value in values if len(value) >= _SHORTEST), key=len, reverse=True)
