"""Prompts are read and answers predicted: against passages that are put together by hand."""

from typing import Any

import pytest
from chats import LLAMA3, SMOLLM2, byte_tokenizer
from tiny import make_tokenizer

from hf_accum.data.source import BadRow
from hf_accum.tasks.causal_lm.data import Passage
from hf_accum.tasks.causal_lm.instructions import Conversations, PromptsAndResponses

ROW = {"question": "What is ptosis?", "answer": "A drooping eyelid."}
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def by_hand(tokenizer: Any, *parts: tuple[str, bool]) -> tuple[list[int], list[bool]]:
    """Each part tokenised by itself; whether it is predicted."""
    tokens, is_target = [], []
    for text, predicted in parts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        tokens += ids
        is_target += [predicted] * len(ids)
    return tokens, is_target


def shown(passage: Passage) -> tuple[list[int], list[bool]]:
    return passage.tokens.tolist(), passage.is_target.tolist()


def test_a_prompt_is_masked_in_a_chat_template() -> None:
    tokenizer = byte_tokenizer(SMOLLM2)
    key, (passage,) = PromptsAndResponses(tokenizer, "question", "answer", 1000).read(ROW)
    assert key == ROW["question"]
    prompt = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nWhat is ptosis?<|im_end|>\n"
    expected = by_hand(
        tokenizer, (f"{prompt}<|im_start|>assistant\n", False), ("A drooping eyelid.", True), ("<|im_end|>", True)
    )
    assert shown(passage) == expected
    assert passage.num_truncated == 0


def test_a_template_s_own_first_token_is_the_only_one() -> None:
    tokenizer = byte_tokenizer(LLAMA3, "<|eot_id|>")
    _, (passage,) = PromptsAndResponses(tokenizer, "question", "answer", 1000).read(ROW)
    assert passage.tokens.tolist().count(tokenizer.bos_token_id) == 1
    assert passage.tokens[0] == tokenizer.bos_token_id


def test_without_a_template_a_line_end_stands_between() -> None:
    tokenizer = byte_tokenizer()
    _, (passage,) = PromptsAndResponses(tokenizer, "question", "answer", 1000).read(ROW)
    expected = by_hand(tokenizer, ("What is ptosis?\n", False), ("A drooping eyelid.<|im_end|>", True))
    assert shown(passage) == expected
    _, (passage,) = PromptsAndResponses(make_tokenizer(), "question", "answer", 1000).read(
        {"question": "w1 w2", "answer": "w3 w4"}
    )
    assert shown(passage) == ([2, 5, 6, 7, 8, 3], [False, False, False, True, True, True])


def test_all_turns_of_the_assistant_are_predicted_and_nothing_else() -> None:
    tokenizer = byte_tokenizer(SMOLLM2)
    turns = [("system", "Be brief."), ("user", "a?"), ("assistant", "b"), ("user", "ç?"), ("assistant", "d ü\n")]
    messages = [{"role": role, "content": content, "name": None} for role, content in turns]
    key, (passage,) = Conversations(tokenizer, "messages", 1000).read({"messages": messages})
    assert key == '[["system", "Be brief."], ["user", "a?"]]'
    parts = []
    for role, content in turns:
        parts += [(f"<|im_start|>{role}\n", False), (f"{content}<|im_end|>", role == "assistant"), ("\n", False)]
    expected = by_hand(tokenizer, *parts[:-1])  # nobody reads the last line end
    assert shown(passage) == expected


def test_a_long_answer_is_cut_and_counted() -> None:
    reader = PromptsAndResponses(make_tokenizer(), "question", "answer", 6)
    _, (passage,) = reader.read({"question": "w1 w2", "answer": "w3 w4 w5 w6 w7"})
    assert shown(passage) == ([2, 5, 6, 7, 8, 9], [False] * 3 + [True] * 3)
    assert passage.num_truncated == 3


def test_what_stands_behind_the_last_answer_that_is_left_is_not_computed() -> None:
    tokenizer = byte_tokenizer(SMOLLM2)
    messages = [{"role": r, "content": c} for r, c in [("user", "a"), ("assistant", "b"), ("user", "c" * 50)]]
    _, (passage,) = Conversations(tokenizer, "messages", 1000).read({"messages": messages})
    assert passage.is_target[-1]
    assert passage.num_truncated == 0
    messages.append({"role": "assistant", "content": "d"})
    whole = Conversations(tokenizer, "messages", 1000).read({"messages": messages})[1][0]
    _, (cut,) = Conversations(tokenizer, "messages", len(passage.tokens) + 20).read({"messages": messages})
    assert shown(cut) == shown(passage)
    assert cut.num_truncated == len(whole.tokens) - len(passage.tokens) - 20


def test_an_answer_that_has_no_place_is_a_bad_row() -> None:
    reader = PromptsAndResponses(make_tokenizer(), "question", "answer", 5)
    with pytest.raises(BadRow, match=r"answer.*the 5 tokens before the answer leave no place for it: `max_length` 5"):
        reader.read({"question": "w1 w2 w3 w4", "answer": "w5"})
    assert reader.read({"question": "w1 w2 w3", "answer": "w5"})[1][0].num_truncated == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "w1"}, "no such column"),
        ({"question": "w1", "answer": " "}, "empty text"),
        ({"question": None, "answer": "w1"}, "no text"),
    ],
)
def test_pairs_that_cannot_be_used_are_bad_rows(row: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRow, match=message):
        PromptsAndResponses(make_tokenizer(), "question", "answer", 9).read(row)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("hello", "has to be a list of messages"),
        ([], "has to be a list of messages"),
        (["hello"], "is no message"),
        ([{"speaker": "human", "value": "hello"}], "is no message"),
        ([{"role": "user", "content": "hello"}], "no message has the role 'assistant'"),
        ([{"role": "assistant", "content": "hello"}], "the assistant speaks first"),
        ([{"role": "user", "content": "\ud83d"}], "field 'content': not UTF-8"),
        ([{"role": "us\ud83der", "content": "a"}, {"role": "assistant", "content": "b"}], "not UTF-8"),
    ],
)
def test_messages_that_cannot_be_used_are_bad_rows(value: Any, message: str) -> None:
    with pytest.raises(BadRow, match=message):
        Conversations(byte_tokenizer(SMOLLM2), "messages", 99).read({"messages": value})


def test_a_tokenizer_without_a_template_has_no_conversations() -> None:
    with pytest.raises(ValueError, match="`messages_column` chat: needs a tokenizer with a chat template"):
        Conversations(byte_tokenizer(), "chat", 99)


OPEN = (
    "{% for message in messages %}### {{ message.role }}:\n{{ message.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)


def test_a_template_that_ends_a_turn_by_no_token_gets_the_one_that_ends_a_text() -> None:
    tokenizer = byte_tokenizer(OPEN)
    reader = PromptsAndResponses(tokenizer, "term", "definition", 200)
    _, (passage,) = reader.read({"term": "fever", "definition": "warm"})
    end = [tokenizer.eos_token_id]
    assert passage.tokens[passage.is_target].tolist() == by_hand(tokenizer, ("warm\n\n", True))[0] + end
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for messages, said in ((turns, "b\n\n"), ([*turns, turns[0], turns[1]], "b\n\nb\n\n")):
        _, (passage,) = Conversations(tokenizer, "messages", 200).read({"messages": messages})
        assert passage.tokens[passage.is_target].tolist() == by_hand(tokenizer, (said, True))[0] + end
    _, (passage,) = Conversations(tokenizer, "messages", 200).read({"messages": [*turns, turns[0]]})
    assert tokenizer.eos_token_id not in passage.tokens.tolist()


def test_what_an_instruction_is_about_follows_it() -> None:
    """Alpaca's three columns."""
    rows = [{"instruction": "Say it.", "input": about, "output": "fever"} for about in ("a", "", " ", None)]
    rows.append({"instruction": "Say it.", "output": "fever"})
    for template in (SMOLLM2, None):
        tokenizer = byte_tokenizer(template)
        three = PromptsAndResponses(tokenizer, "instruction", "output", 999, "input")
        two = PromptsAndResponses(tokenizer, "instruction", "output", 999)
        assert three.columns == ("instruction", "output", "input")
        expected = ["Say it.\n\na"] + 4 * ["Say it."]
        for row, prompt in zip(rows, expected, strict=True):
            key, (passage,) = three.read(row)
            assert key == prompt
            assert shown(passage) == shown(two.read({"instruction": prompt, "output": "fever"})[1][0])
    with pytest.raises(BadRow, match="'input': 3 is of type int, not a text"):
        three.read({"instruction": "Say it.", "input": 3, "output": "fever"})


def test_rows_are_told_apart_by_what_is_asked_first() -> None:
    hello = {"role": "assistant", "content": "Hello."}
    turns = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]
    reader = Conversations(byte_tokenizer(SMOLLM2), "messages", 999)
    key, (passage,) = reader.read({"messages": [hello, *turns]})
    assert key == '[["assistant", "Hello."], ["user", "a?"]]'
    assert len(passage.remarks) == 1
    assert reader.read({"messages": turns})[0] == '[["user", "a?"]]'
    assert reader.read({"messages": [*turns, *turns]})[0] == '[["user", "a?"]]'
