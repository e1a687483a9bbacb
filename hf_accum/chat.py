"""Conversations as the tokenizer's chat template writes them, and where in that text the assistant speaks."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_accum.errors import first_line, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]
Span = tuple[int, int]
"""From a character up to another one."""

ASSISTANT = "assistant"


def written(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> tuple[str, list[Span]]:
    """A conversation as text, with all special tokens in it, and what of it the assistant says.

    A turn of the assistant is what the template adds behind the prompt for it, so that a model which is given that
    prompt goes on with the turn; the token that ends the turn is part of it, a line end behind that is not.

    Raises:
        ValueError: if the template refuses the conversation; if it writes the start of one in another way once it
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
            raise ValueError(
                f"the tokenizer's chat template writes message {index + 1} of {len(messages)} in another way when "
                "the conversation goes on: what the assistant says cannot be told from the rest"
            )
        spans.append((len(before), len(_without_line_end(tokenizer, through))))
    return whole, spans


def _write(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], *, asks: bool) -> str:
    if not messages:
        raise ValueError("the assistant speaks first: there is nothing to answer")
    try:
        # Templates are programs that come with a tokenizer (run in a sandbox): anything may be raised.
        text = tokenizer.apply_chat_template(list(map(dict, messages)), tokenize=False, add_generation_prompt=asks)
    except Exception as error:
        raise ValueError(f"the tokenizer's chat template refuses it ({first_line(error)})") from error
    if not isinstance(text, str):
        raise ValueError(f"the tokenizer's chat template makes {shown(text)} of it, which is no text")
    return text


def _without_line_end(tokenizer: "PreTrainedTokenizerBase", text: str) -> str:
    stripped = text.rstrip()
    return stripped if stripped.endswith(tuple(tokenizer.all_special_tokens)) else text
