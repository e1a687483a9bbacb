"""Conversations as data sets write them, and the messages that templates are given."""

import json
from typing import Any

import pytest

from hf_accum.data.formats.rows import BadRow
from hf_accum.tasks.causal_lm.messages import messages_of, tools_of

CALL = {"type": "function", "function": {"name": "dose", "arguments": {"drug": "x"}}}


def read(*values: Any) -> list[dict[str, Any]]:
    return messages_of({"messages": list(values)}, "messages")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"from": "human", "value": "a"}, {"role": "user", "content": "a"}),
        ({"from": "gpt", "value": "a"}, {"role": "assistant", "content": "a"}),
        ({"from": "system", "value": "a"}, {"role": "system", "content": "a"}),
        ({"from": "observation", "value": "a"}, {"role": "tool", "content": "a"}),
        ({"role": "gpt", "content": "a"}, {"role": "assistant", "content": "a"}),
        ({"role": "user", "content": "a", "from": None, "name": "b"}, {"role": "user", "content": "a", "name": "b"}),
        (
            {
                "role": "user",
                "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b", "image": None}],
            },
            {"role": "user", "content": "a b"},
        ),
        ({"role": "system", "content": ""}, {"role": "system", "content": ""}),
        ({"role": "system", "content": None}, {"role": "system", "content": ""}),
        ({"role": "tool", "content": "", "name": "dose"}, {"role": "tool", "content": "", "name": "dose"}),
        (
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
        ),
        (
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}],
            },
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
        ),
        (
            {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"a": 1, "b": None}}]},
            {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"a": 1}}]},
        ),
        ({"role": "assistant", "content": "a", "tool_calls": []}, {"role": "assistant", "content": "a"}),
    ],
)
def test_each_form_of_a_message_is_read(value: dict[str, Any], message: dict[str, Any]) -> None:
    assert read(value) == [message]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("hello", "is no message"),
        ({"value": "hello"}, "is no message: it has to have a `role` and a `content`, or a `from` and a `value`"),
        ({"role": "user", "content": ""}, "'content': empty text"),
        ({"role": "user"}, r"'content': no text \(null"),
        ({"role": "assistant", "content": "", "tool_calls": []}, "'content': empty text"),
        ({"role": "assistant", "content": "", "tool_calls": "f()"}, "`tool_calls` 'f()': has to be a list of calls"),
        ({"role": "user", "content": [{"type": "image", "image": "x.png"}]}, "is a part of type image"),
        ({"role": "user", "content": [{"type": "text"}]}, "has to be of type text, with a `text`"),
        ({"role": "user", "content": ["hello"]}, "is a part of type None"),
        ({"role": "user", "content": {"text": "hello"}}, "is of type dict, not a text"),
    ],
)
def test_what_is_no_message_is_a_bad_row(value: Any, said: str) -> None:
    with pytest.raises(BadRow, match=said.replace("f()", r"f\(\)")):
        read(value)


@pytest.mark.parametrize("missing", [None, "", [], float("nan")])
def test_definitions_of_tools(missing: Any) -> None:
    """A table has each field in each of them."""
    tool = {"type": "function", "function": {"name": "dose"}}
    for value in ([tool], json.dumps([tool]), [tool | {"strict": None}]):
        assert tools_of({"tools": value}, "tools") == [tool]
    assert tools_of({"tools": missing}, "tools") == tools_of({}, "tools") == tools_of({"tools": [tool]}, None) == []
    for wrong in ("dose", '{"name": "dose"}', ["dose"], 7):
        with pytest.raises(BadRow, match=r"field 'tools': .* has to be a list of tools"):
            tools_of({"tools": wrong}, "tools")


def test_a_conversation_may_be_json_in_a_text() -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert messages_of({"m": json.dumps(messages)}, "m") == messages
    for wrong in ("[{", "hello", '{"role": "user", "content": "a"}'):
        with pytest.raises(BadRow, match="has to be a list of messages"):
            messages_of({"m": wrong}, "m")
