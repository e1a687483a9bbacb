"""Instructions and conversations as passages: only what the assistant says is predicted."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hf_accum.data.formats.rows import BadRow, Row, check_unicode, is_missing
from hf_accum.errors import UserError
from hf_accum.tasks.causal_lm.chat import ASSISTANT, SYSTEM, Message, Span, prompt_of, written
from hf_accum.tasks.causal_lm.data import Passage
from hf_accum.tasks.causal_lm.messages import messages_of, tools_of
from hf_accum.tasks.special_tokens import Frame, frame_of
from hf_accum.tasks.tokenization import text_of, tokenize_with_places

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NOTHING_AROUND = Frame((), ())


class PromptsAndResponses:
    """A prompt and its response: as a conversation where the tokenizer has a chat template, otherwise as one text,
    with a line end between them.

    What stands in an `input_column`, if anything does, follows the prompt after a blank line.
    """

    most_parts = 1

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        prompt_column: str,
        response_column: str,
        max_length: int,
        input_column: str | None = None,
    ) -> None:
        _check_tokenizer(tokenizer)
        self._tokenizer = tokenizer
        self._prompt_column = prompt_column
        self._response_column = response_column
        self._input_column = input_column
        self._max_length = max_length
        self._frame = frame_of(tokenizer)
        self._chats = None if tokenizer.chat_template is None else _Chats(tokenizer, max_length)

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of prompt, response and input."""
        return self._prompt_column, self._response_column, *([self._input_column] if self._input_column else [])

    def read(self, row: Row) -> tuple[str, list[Passage]]:
        """Its passage.

        Raises:
            BadRow: if one of them is missing, or too long to leave a place for any of the response.
        """
        prompt, response = self._asked(row), text_of(row, self._response_column)
        if self._chats is not None:
            turns = ({"role": "user", "content": prompt}, {"role": ASSISTANT, "content": response})
            return prompt, [self._chats.passage(turns, self._prompt_column, self._response_column)]
        text = f"{prompt}\n{response}"
        how = (self._max_length, self._response_column)
        return prompt, [_passage(self._tokenizer, text, [(len(prompt) + 1, len(text))], self._frame, *how)]

    def prompt(self, row: Row) -> np.ndarray:
        """The tokens up to where the response begins.

        Raises:
            BadRow: if there is no prompt.
        """
        asked = self._asked(row)
        if self._chats is not None:
            return self._chats.prompt([{"role": "user", "content": asked}], self._prompt_column)
        tokens, _ = tokenize_with_places(self._tokenizer, f"{asked}\n")
        return Frame(self._frame.before, ()).around(tokens)

    def _asked(self, row: Row) -> str:
        prompt = text_of(row, self._prompt_column)
        about = row.get(self._input_column) if self._input_column else None
        if self._input_column and not (is_missing(about) or (isinstance(about, str) and not about.strip())):
            return f"{prompt}\n\n{text_of(row, self._input_column)}"
        return prompt


class Conversations:
    """Lists of messages, see `messages_of`, as the tokenizer's chat template writes them; with the tools that a
    `tools_column` defines.
    """

    most_parts = 1

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        messages_column: str,
        max_length: int,
        tools_column: str | None = None,
    ) -> None:
        _check_tokenizer(tokenizer)
        if tokenizer.chat_template is None:
            raise UserError(
                f"`messages_column` {messages_column}: needs a tokenizer with a chat template, and that of the model "
                "has none; give another model, or `prompt_column` and `response_column`"
            )
        self._messages_column = messages_column
        self._tools_column = tools_column
        self._chats = _Chats(tokenizer, max_length)

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of the messages and of the tools."""
        return self._messages_column, *([self._tools_column] if self._tools_column else [])

    def read(self, row: Row) -> tuple[str, list[Passage]]:
        """Its passage; equal rows are known by what is asked first.

        Raises:
            BadRow: if there are no messages, none of the assistant, or none that leaves it a place.
        """
        column = self._messages_column
        messages = messages_of(row, column)
        roles = [message["role"] for message in messages]
        if ASSISTANT not in roles:
            raise BadRow(column, f"no message has the role {ASSISTANT!r}: there is nothing to learn")
        asked = next((index for index, role in enumerate(roles) if role not in (SYSTEM, ASSISTANT)), 0)
        answered = roles.index(ASSISTANT, asked) if ASSISTANT in roles[asked:] else len(roles)
        key = json.dumps([[message["role"], message["content"]] for message in messages[:answered]])
        return key, [self._chats.passage(messages, column, column, tools_of(row, self._tools_column))]

    def prompt(self, row: Row) -> np.ndarray:
        """The tokens up to where the assistant is to speak: what it says at the end of the conversation is left out.

        Raises:
            BadRow: if there are no messages, or none that is not the assistant's.
        """
        messages = messages_of(row, self._messages_column)
        while messages and messages[-1]["role"] == ASSISTANT:
            messages.pop()
        return self._chats.prompt(messages, self._messages_column, tools_of(row, self._tools_column))


def _check_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> None:
    if not tokenizer.is_fast:
        raise UserError("the model has to have a fast tokenizer, which tells of which characters its tokens are")


class _Chats:
    """Conversations as passages. Where the assistant speaks last, and the template ends its turn by no token at all,
    the one that ends a text does: without it a model would never learn to end.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length
        added = (str(token).strip() for token in tokenizer.added_tokens_decoder.values())
        self._tokens = tuple(token for token in added if token)
        self._end = Frame((), frame_of(tokenizer).after)

    def passage(
        self, messages: Sequence[Message], column: str, answer_column: str, tools: Sequence[Message] = ()
    ) -> Passage:
        """That of a conversation; messages name the columns that it is from."""
        try:
            chat = written(self._tokenizer, messages, tools)
        except ValueError as error:
            raise BadRow(column, str(error)) from error
        check_unicode(column, chat.text)  # roles and other fields, of which the template makes what it likes
        frame = self._frame_of(chat.text, chat.spans)
        how = (frame, self._max_length, answer_column, chat.remarks)
        return _passage(self._tokenizer, chat.text, chat.spans, *how)

    def prompt(self, messages: Sequence[Message], column: str, tools: Sequence[Message] = ()) -> np.ndarray:
        """The tokens of a conversation up to where the assistant is to speak next."""
        try:
            text = prompt_of(self._tokenizer, messages, tools)
        except ValueError as error:
            raise BadRow(column, str(error)) from error
        check_unicode(column, text)
        return tokenize_with_places(self._tokenizer, text)[0]

    def _frame_of(self, text: str, spans: list[Span]) -> Frame:
        is_open = bool(spans) and spans[-1][1] == len(text) and not text.rstrip().endswith(self._tokens)
        return self._end if is_open else _NOTHING_AROUND


def _passage(
    tokenizer: "PreTrainedTokenizerBase",
    text: str,
    spans: list[Span],
    frame: Frame,
    max_length: int,
    column: str,
    remarks: tuple[str, ...] = (),
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
    return Passage(frame.around(tokens)[:end], is_target[:end], num_truncated, remarks=remarks)
