"""Conversations as the tokenizer's chat template writes them, and where in that text the assistant speaks."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from hf_accum.errors import UserError, first_line, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]
Span = tuple[int, int]
"""From a character up to another one."""

ASSISTANT = "assistant"

DATE = datetime(2024, 7, 26)
"""What templates that write today's date are told that it is (Llama 3's name this day where they know none)."""


def written(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> tuple[str, list[Span]]:
    """A conversation as text, with all special tokens in it, and what of it the assistant says.

    A turn of the assistant is what the template adds behind the prompt for it, so that a model which is given that
    prompt goes on with the turn; the token that ends the turn is part of it, a line end behind that is not. Where a
    template writes today's date it is that of `DATE`: the same text on each rank, and on the day that a run goes on.

    Raises:
        UserError: if the template refuses the conversation; if it writes the start of one in another way once it
            goes on (as some do that leave out what was thought in earlier turns), so that the turns cannot be found.
    """
    whole = _write(tokenizer, messages, asks=False)
    spans: list[Span] = []
    for index, message in enumerate(messages):
        if message["role"] != ASSISTANT:
            continue
        before = _write(tokenizer, messages[:index], asks=True)
        is_last = index + 1 == len(messages)
        through = whole if is_last else _write(tokenizer, messages[: index + 1], asks=False)
        if not through.startswith(before) or not whole.startswith(through):
            raise UserError(
                f"the tokenizer's chat template writes message {index + 1} of {len(messages)} in another way when "
                "the conversation goes on: what the assistant says cannot be told from the rest"
            )
        spans.append((len(before), len(_without_line_end(tokenizer, through))))
    return whole, spans


def _write(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], *, asks: bool) -> str:
    if not messages:
        raise UserError("the assistant speaks first: there is nothing to answer")
    try:
        # Templates are programs that come with a tokenizer (run in a sandbox): anything may be raised.
        text = tokenizer.apply_chat_template(
            list(map(dict, messages)),
            chat_template=_without_clock(tokenizer.get_chat_template()),
            tokenize=False,
            add_generation_prompt=asks,
        )
    except Exception as error:
        raise UserError(f"the tokenizer's chat template refuses it ({first_line(error)})") from error
    if not isinstance(text, str):
        raise UserError(f"the tokenizer's chat template makes {shown(text)} of it, which is no text")
    return text


@cache
def _without_clock(template: str) -> str:
    """A template in front of which the function that tells the time is another one.

    It is a macro: transformers makes of functions that a template is given names of their types.
    """
    if "strftime_now" not in template:
        return template
    known = {f"%{letter}": DATE.strftime(f"%{letter}") for letter in "aAbBdfHIjmMpSuwyY"}
    known |= {f"%-{letter}": known[f"%{letter}"].lstrip("0") or "0" for letter in "dHIjmMSy"}
    known |= {short: DATE.strftime(long) for short, long in (("%F", "%Y-%m-%d"), ("%T", "%H:%M:%S"))}
    filters = "".join(f" | replace('{directive}', '{value}')" for directive, value in known.items())
    # The line end behind the macro is no part of the text.
    return f"{{% macro strftime_now(format) %}}{{{{ format{filters} }}}}{{% endmacro %}}\n{template}"


def _without_line_end(tokenizer: "PreTrainedTokenizerBase", text: str) -> str:
    stripped = text.rstrip()
    return stripped if stripped.endswith(tuple(tokenizer.all_special_tokens)) else text
