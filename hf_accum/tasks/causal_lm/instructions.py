"""Instructions and conversations as passages: only what the assistant says is predicted."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_accum.data.formats.rows import BadRow, Row, check_unicode, value_of
from hf_accum.errors import UserError, shown
from hf_accum.tasks.causal_lm.chat import ASSISTANT, Message, Span, written
from hf_accum.tasks.causal_lm.data import Passage
from hf_accum.tasks.special_tokens import Frame, frame_of
from hf_accum.tasks.tokenization import text_of, tokenize_with_places

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NOTHING_AROUND = Frame((), ())


class PromptsAndResponses:
    """A prompt and its response: as a conversation where the tokenizer has a chat template, otherwise as one text,
    with a line end between them.
    """

    most_parts = 1

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", prompt_column: str, response_column: str, max_length: int
    ) -> None:
        _check_tokenizer(tokenizer)
        self._tokenizer = tokenizer
        self._prompt_column = prompt_column
        self._response_column = response_column
        self._max_length = max_length
        self._frame = frame_of(tokenizer)
        self._end_of_chat = _EndOfChat(tokenizer)

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of prompt and response."""
        return self._prompt_column, self._response_column

    def read(self, row: Row) -> tuple[str, list[Passage]]:
        """Its passage.

        Raises:
            BadRow: if one of them is missing, or too long to leave a place for any of the response.
        """
        prompt, response = text_of(row, self._prompt_column), text_of(row, self._response_column)
        if self._tokenizer.chat_template is None:
            text, frame = f"{prompt}\n{response}", self._frame
            spans = [(len(prompt) + 1, len(text))]
        else:
            turns = ({"role": "user", "content": prompt}, {"role": ASSISTANT, "content": response})
            text, spans = _written(self._tokenizer, turns, self._prompt_column)
            frame = self._end_of_chat.of(text, spans)
        return prompt, [_passage(self._tokenizer, text, spans, frame, self._max_length, self._response_column)]


class Conversations:
    """Lists of messages, each with a `role` and a `content`, as the tokenizer's chat template writes them."""

    most_parts = 1

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", messages_column: str, max_length: int) -> None:
        _check_tokenizer(tokenizer)
        if tokenizer.chat_template is None:
            raise UserError(
                f"`messages_column` {messages_column}: needs a tokenizer with a chat template, and that of the model "
                "has none; give another model, or `prompt_column` and `response_column`"
            )
        self._tokenizer = tokenizer
        self._messages_column = messages_column
        self._end_of_chat = _EndOfChat(tokenizer)
        self._max_length = max_length

    @property
    def columns(self) -> tuple[str, ...]:
        """That of the messages."""
        return (self._messages_column,)

    def read(self, row: Row) -> tuple[str, list[Passage]]:
        """Its passage.

        Raises:
            BadRow: if there are no messages, none of the assistant, or none that leaves it a place.
        """
        column = self._messages_column
        messages = self._messages(row)
        first = next((i for i, message in enumerate(messages) if message["role"] == ASSISTANT), None)
        if first is None:
            raise BadRow(column, f"no message has the role {ASSISTANT!r}: there is nothing to learn")
        text, spans = _written(self._tokenizer, messages, column)
        key = json.dumps([[message["role"], message["content"]] for message in messages[:first]])
        frame = self._end_of_chat.of(text, spans)
        return key, [_passage(self._tokenizer, text, spans, frame, self._max_length, column)]

    def _messages(self, row: Row) -> list[dict[str, Any]]:
        column = self._messages_column
        values = value_of(row, column)
        if not isinstance(values, list | tuple) or not values:
            raise BadRow(column, f"{shown(values)} has to be a list of messages")
        messages = []
        for value in values:
            if not isinstance(value, Mapping) or not isinstance(value.get("role"), str):
                raise BadRow(column, f"{shown(value)} is no message: it has to have a `role` and a `content`")
            text_of(value, "content")
            # A table has each field in each message; one without a value is none.
            messages.append({str(name): field for name, field in value.items() if field is not None})
        return messages


def _check_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> None:
    if not tokenizer.is_fast:
        raise UserError("the model has to have a fast tokenizer, which tells of which characters its tokens are")


def _written(
    tokenizer: "PreTrainedTokenizerBase", messages: tuple[Message, ...] | list[dict[str, Any]], column: str
) -> tuple[str, list[Span]]:
    try:
        text, spans = written(tokenizer, messages)
    except ValueError as error:
        raise BadRow(column, str(error)) from error
    check_unicode(column, text)  # roles and other fields, of which the template makes what it likes
    return text, spans


class _EndOfChat:
    """The token that ends a text, where the assistant speaks last and the template ends its turn by no token at all:
    without it a model would never learn to end.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        added = (str(token).strip() for token in tokenizer.added_tokens_decoder.values())
        self._tokens = tuple(token for token in added if token)
        self._end = Frame((), frame_of(tokenizer).after)

    def of(self, text: str, spans: list[Span]) -> Frame:
        is_open = bool(spans) and spans[-1][1] == len(text) and not text.rstrip().endswith(self._tokens)
        return self._end if is_open else _NOTHING_AROUND


def _passage(
    tokenizer: "PreTrainedTokenizerBase", text: str, spans: list[Span], frame: Frame, max_length: int, column: str
) -> Passage:
    """Of a text of which the spans are predicted, and what stands after it.

    A token belongs to a span if it starts in it.
    """
    tokens, starts = tokenize_with_places(tokenizer, text)
    of_spans = np.zeros(len(tokens), dtype=bool)
    for first, last in spans:
        of_spans |= (first <= starts) & (starts < last)
    is_target = np.concatenate([np.zeros(len(frame.before), bool), of_spans, np.ones(len(frame.after), bool)])
    is_target[:1] = False
    places = np.flatnonzero(is_target)
    if not len(places):
        raise BadRow(column, "no token of the answer is left: it has to have a text")
    kept = places[places < max_length]
    if not len(kept):
        raise BadRow(
            column,
            f"the {places[0]:,} tokens before the answer leave no place for it: `max_length` {max_length} has to be "
            "larger",
        )
    end = kept[-1] + 1  # what comes behind the last answer is read by nobody
    num_truncated = max(0, int(places[-1]) + 1 - max_length)
    return Passage(frame.around(tokens)[:end], is_target[:end], num_truncated)
