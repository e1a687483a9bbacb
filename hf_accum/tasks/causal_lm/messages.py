"""The messages of a conversation, as data sets write them, in the one form that chat templates read."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from hf_accum.data.formats.rows import BadRow, Row, is_missing, value_of
from hf_accum.errors import shown
from hf_accum.tasks.causal_lm.chat import ASSISTANT
from hf_accum.tasks.tokenization import text_of

_ROLES = {"human": "user", "gpt": ASSISTANT, "observation": "tool"}
"""Of ShareGPT, which writes `from` and `value` in the place of `role` and `content`."""
_MAY_BE_EMPTY = ("system", "tool")


def messages_of(row: Row, column: str) -> list[dict[str, Any]]:
    """The messages of a row: each with a `role` and a `content`, a text, and with whatever other fields it has.

    What the assistant says may be empty where it calls tools; so may what the system or a tool says. Content in parts
    (of type text) is put together, and arguments of a tool that are JSON in a text are read. A field without a value
    is none: tables have each field in each message. The list may be JSON in a text, as a csv has it.

    Raises:
        BadRow: for what is no list of messages, or a message without a role or a text.
    """
    values = _as_json(value_of(row, column))
    if not isinstance(values, list | tuple) or not values:
        raise BadRow(column, f"{shown(values)} has to be a list of messages")
    return [_message(value, column) for value in values]


def tools_of(row: Row, column: str | None) -> list[dict[str, Any]]:
    """The definitions of the tools that a row's assistant may call: a list of objects, or that as JSON in a text.

    Raises:
        BadRow: for something else.
    """
    values = None if column is None else row.get(column)
    if column is None or is_missing(values) or values in ("", [], ()):
        return []
    values = _without_nulls(_as_json(values))
    if not isinstance(values, list) or not all(isinstance(tool, dict) for tool in values):
        raise BadRow(column, f"{shown(values)} has to be a list of tools, each an object")
    return values


def _as_json(value: Any) -> Any:
    """What a text says where it is JSON, as in a csv; else the value."""
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def _message(value: Any, column: str) -> dict[str, Any]:
    fields: dict[str, Any] = _without_nulls(value) if isinstance(value, Mapping) else {}
    if "role" not in fields and "content" not in fields:
        fields = {{"from": "role", "value": "content"}.get(name, name): field for name, field in fields.items()}
    role = fields.get("role")
    if not isinstance(role, str):
        raise BadRow(
            column,
            f"{shown(value)} is no message: it has to have a `role` and a `content`, or a `from` and a `value`",
        )
    role = _ROLES.get(role, role)
    content = _text(fields.get("content"), column)
    if calls := fields.get("tool_calls"):
        fields["tool_calls"] = _calls(calls, column)
    else:
        fields.pop("tool_calls", None)  # an empty list
    is_empty = content is None or (isinstance(content, str) and not content.strip())
    if not is_empty or (role not in _MAY_BE_EMPTY and not (role == ASSISTANT and calls)):
        text_of({"content": content}, "content")
    return fields | {"role": role, "content": content or ""}


def _text(content: Any, column: str) -> Any:
    """Content in parts as one text, with nothing between them, as templates write them; other content as it is."""
    if is_missing(content):
        return None
    if not isinstance(content, list | tuple):
        return content
    texts: list[str] = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise BadRow(column, f"{shown(part)} is a part of type {kind}: it has to be of type text, with a `text`")
        texts.append(part["text"])
    return "".join(texts)


def _calls(calls: Any, column: str) -> list[Any]:
    """Calls of tools whose arguments are a mapping: a template would write JSON in a text as a text once more."""
    if not isinstance(calls, list | tuple) or not all(isinstance(call, Mapping) for call in calls):
        raise BadRow(column, f"`tool_calls` {shown(calls)}: has to be a list of calls")
    read: list[Any] = []
    for call in calls:
        call = dict(call)
        function = call.get("function")
        if isinstance(function, Mapping):
            call["function"] = _with_arguments(function)
        read.append(_with_arguments(call))
    return read


def _with_arguments(function: Mapping[str, Any]) -> dict[str, Any]:
    arguments = function.get("arguments")
    value = _as_json(arguments)
    arguments = value if isinstance(value, dict) else arguments
    return {**function, "arguments": arguments} if "arguments" in function else dict(function)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _without_nulls(field) for name, field in value.items() if field is not None}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_without_nulls(item) for item in value]
    return value
