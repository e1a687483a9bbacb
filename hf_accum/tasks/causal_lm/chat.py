"""Conversations as the tokenizer's chat template writes them, and where in that text the assistant speaks."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from itertools import dropwhile, takewhile
from typing import TYPE_CHECKING, Any

from hf_accum.errors import UserError, first_line, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]
Span = tuple[int, int]
"""From a character up to another one."""

ASSISTANT, SYSTEM = "assistant", "system"

DATE = datetime(2024, 7, 26)
"""What templates that write today's date are told that it is (Llama 3's name this day where they know none)."""


_OPENING = re.compile(r"(<(think(ing)?|thoughts?|reason(ing)?)>|\[THINK(ING)?\])\s*(</\w+>\s*)?$", re.IGNORECASE)
"""Of what is thought before an answer, at the end of a prompt; of nothing, where it is closed there too."""


@dataclass(frozen=True)
class Written:
    """A conversation as text, with all special tokens in it; what the assistant says; what is to be said of it."""

    text: str
    spans: list[Span]
    remarks: tuple[str, ...] = ()
    """What of it is not learned, or not as the data has it: each holds for one conversation more."""


REWRITTEN = (
    "the chat template writes earlier turns of the assistant in another way once the conversation goes on, as where "
    "it leaves out what was thought: those are read, and not learned"
)
OPENED = (
    "the prompt of the chat template ends in a tag that opens reasoning, which these turns do not have: they are "
    "learned without it"
)
SPEAKS_FIRST = "the assistant speaks first: that turn answers nothing, and is read, not learned"
LEFT_OUT = "the assistant speaks first, which the chat template refuses: that turn is left out"
CALLS_LEFT_OUT = (
    "the chat template leaves out what the assistant calls of tools: turns of nothing else are read, and not learned"
)
TOOLS_LEFT_OUT = "the chat template leaves out the definitions of tools: they are not read"
JOINED = "the chat template takes one message of the system: several at the start are joined, a blank line between"


def written(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], tools: Sequence[Message] = ()
) -> Written:
    """A conversation as the template writes it, and what of it is learned.

    A turn of the assistant is what the template adds behind the prompt for it, so that a model which is given that
    prompt goes on with the turn; the token that ends the turn is part of it, a line end behind that is not. Where a
    template writes today's date it is that of `DATE`: the same text on each rank, and on the day that a run goes on.

    Turns that the template writes in another way once the conversation goes on are read, and not learned; the last
    one always is learned. Of a turn that only calls tools nothing is learned where the template writes no calls.
    Where it refuses the conversation for how it begins, or leaves out a message of the system, another beginning is
    tried: messages of the system joined, without the turn that answers nothing.

    Raises:
        UserError: if the template refuses the conversation, leaves out what the system says, or writes the last turn
            so that it cannot be told from the prompt.
    """
    template = _Template(tokenizer, tools)
    return _begun(messages, lambda beginning: _written(template, beginning))


def prompt_of(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], tools: Sequence[Message] = ()
) -> str:
    """A conversation up to where the assistant is to speak next, as the template writes it.

    Raises:
        UserError: if the template refuses the conversation, or leaves out what the system says.
    """
    template = _Template(tokenizer, tools)
    return _begun(messages, lambda beginning: Written(template.write(beginning, asks=True), [])).text


def _begun(messages: Sequence[Message], write: Callable[[Sequence[Message]], Written]) -> Written:
    """What is written of the first beginning that the template takes."""
    refused: UserError | None = None
    for beginning, remarks in _beginnings(messages):
        try:
            found = write(beginning)
            _check_system(found.text, beginning)
        except UserError as error:
            refused = refused or error
            continue
        return replace(found, remarks=(*remarks, *found.remarks))
    assert refused is not None
    raise refused


def _beginnings(messages: Sequence[Message]) -> Iterator[tuple[Sequence[Message], tuple[str, ...]]]:
    """The conversation as it is, then with other beginnings, each with what is to be said of it."""
    systems = list(takewhile(lambda message: message["role"] == SYSTEM, messages))
    rest = messages[len(systems) :]
    answering = list(dropwhile(lambda message: message["role"] == ASSISTANT, rest))
    joined = [{"role": SYSTEM, "content": "\n\n".join(str(message["content"]) for message in systems)}]
    yield messages, ()
    if len(systems) > 1:
        yield [*joined, *rest], (JOINED,)
    if len(answering) < len(rest) and any(message["role"] == ASSISTANT for message in answering):
        yield [*systems, *answering], (LEFT_OUT,)
        if len(systems) > 1:
            yield [*joined, *answering], (JOINED, LEFT_OUT)


def _check_system(text: str, messages: Sequence[Message]) -> None:
    for index, message in enumerate(messages, 1):
        if message["role"] == SYSTEM and message["content"].strip() not in text:
            raise UserError(
                f"the tokenizer's chat template leaves out message {index} of {len(messages)}, of the system"
            )


def _written(template: "_Template", messages: Sequence[Message]) -> Written:
    whole = template.write(messages, asks=False)
    turns = [index for index, message in enumerate(messages) if message["role"] == ASSISTANT]
    if turns and turns[-1] + 1 < len(messages):  # what comes behind the last turn is read by nobody
        through = template.write(messages[: turns[-1] + 1], asks=False)
        whole = whole if whole.startswith(through) else through
    spans: list[Span] = []
    remarks: list[str] = []
    for index in turns:
        try:
            before = template.write(messages[:index], asks=True)
            through = whole if index + 1 == len(messages) else template.write(messages[: index + 1], asks=False)
        except UserError:
            if any(message["role"] not in (SYSTEM, ASSISTANT) for message in messages[:index]):
                raise
            remarks.append(SPEAKS_FIRST)
            continue
        unopened = _OPENING.sub("", before)
        start = next((len(prompt) for prompt in (before, unopened) if through.startswith(prompt)), None)
        if start is None or not whole.startswith(through):
            if index == turns[-1]:
                raise UserError(
                    f"the tokenizer's chat template writes message {index + 1} of {len(messages)}, of the assistant, "
                    "in another way than its prompt for it: what the assistant says cannot be told from the rest"
                )
            remarks.append(REWRITTEN)
            continue
        if template.leaves_out_calls(messages[: index + 1], through):
            remarks.append(CALLS_LEFT_OUT)
            if not messages[index]["content"].strip():
                continue
        spans.append((start, len(_without_line_end(template.tokenizer, through))))
        if start < len(before):
            remarks.append(OPENED)
    if turns and not spans:
        raise UserError(
            "the tokenizer's chat template leaves out what the assistant calls of tools, and it says nothing else"
            if CALLS_LEFT_OUT in remarks
            else "the assistant speaks first: there is nothing to answer"
        )
    if template.tools and _Template(template.tokenizer).writes(messages, whole):
        remarks.append(TOOLS_LEFT_OUT)
    return Written(whole, spans, tuple(dict.fromkeys(remarks)))


@dataclass(frozen=True)
class _Template:
    """A tokenizer's chat template, with the tools that it is to write of."""

    tokenizer: "PreTrainedTokenizerBase"
    tools: Sequence[Message] = ()

    def write(self, messages: Sequence[Message], *, asks: bool) -> str:
        """A conversation as text; with the prompt for the assistant where it `asks`.

        Raises:
            UserError: if the template refuses it.
        """
        if not messages:
            raise UserError("the assistant speaks first: there is nothing to answer")
        try:
            # Templates are programs that come with a tokenizer (run in a sandbox): anything may be raised.
            text = self.tokenizer.apply_chat_template(
                list(map(dict, messages)),
                tools=list(map(dict, self.tools)) or None,
                chat_template=_without_clock(self.tokenizer.get_chat_template()),
                tokenize=False,
                add_generation_prompt=asks,
            )
        except Exception as error:
            raise UserError(f"the tokenizer's chat template refuses it ({first_line(error)})") from error
        if not isinstance(text, str):
            raise UserError(f"the tokenizer's chat template makes {shown(text)} of it, which is no text")
        return text

    def writes(self, messages: Sequence[Message], text: str) -> bool:
        """Whether it writes this text."""
        try:
            return self.write(messages, asks=False).startswith(text)
        except UserError:
            return False

    def leaves_out_calls(self, messages: Sequence[Message], text: str) -> bool:
        """Whether the last message calls tools, and this text of it would be the same without."""
        *before, last = messages
        without = {name: value for name, value in last.items() if name != "tool_calls"}
        return without != last and self.writes([*before, without], text)


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
