"""What the assistant says, found in what chat templates of real models write."""

from datetime import datetime
from typing import Any

import pytest
from chats import FORGETS_THOUGHTS, GEMMA, LLAMA3, SMOLLM2, TELLS_THE_DATE, byte_tokenizer

from hf_accum.tasks.causal_lm.chat import (
    CALLS_LEFT_OUT,
    DATE,
    JOINED,
    LEFT_OUT,
    OPENED,
    REWRITTEN,
    SPEAKS_FIRST,
    TOOLS_LEFT_OUT,
    Written,
    written,
)

TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "What is ptosis?"},
    {"role": "assistant", "content": "A drooping eyelid."},
    {"role": "user", "content": "And miosis?"},
    {"role": "assistant", "content": "A small pupil."},
]
SYSTEM = {"role": "system", "content": "Be brief."}


def said(template: str, messages: list[dict[str, Any]], eos_token: str = "<|im_end|>") -> list[str]:
    return learned(written(byte_tokenizer(template, eos_token), messages))


def learned(chat: Written) -> list[str]:
    return [chat.text[start:end] for start, end in chat.spans]


@pytest.mark.parametrize(
    ("template", "end"), [(SMOLLM2, "<|im_end|>"), (LLAMA3, "<|eot_id|>"), (GEMMA, "<end_of_turn>")]
)
def test_turns_of_the_assistant_are_found_with_what_ends_them(template: str, end: str) -> None:
    assert said(template, TURNS, end) == [f"A drooping eyelid.{end}", f"A small pupil.{end}"]
    assert said(template, TURNS[:2], end) == [f"A drooping eyelid.{end}"]
    if template != GEMMA:
        assert said(template, [SYSTEM, *TURNS], end) == [f"A drooping eyelid.{end}", f"A small pupil.{end}"]


def test_the_text_is_the_template_s() -> None:
    text = written(byte_tokenizer(SMOLLM2), TURNS[:2]).text
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is ptosis?<|im_end|>\n<|im_start|>assistant\nA drooping eyelid.<|im_end|>\n"
    )


def test_a_template_that_writes_today_s_date_writes_the_same_on_any_day() -> None:
    """A run goes on behind midnight as before. transformers by itself asks the clock."""
    tokenizer = byte_tokenizer(TELLS_THE_DATE)
    today = str(tokenizer.apply_chat_template(TURNS[:2], tokenize=False))
    chat = written(tokenizer, TURNS[:2])
    text, ((start, end),) = chat.text, chat.spans
    system = "<|im_start|>system\nToday Date: {}<|im_end|>\n"
    assert text.startswith(system.format("26 Jul 2024"))
    assert today.startswith(system.format(datetime.now().strftime("%d %b %Y")))
    assert text[len(system.format("26 Jul 2024")) :] == today[len(system.format("26 Jul 2024")) :]
    assert text[start:end] == "A drooping eyelid.<|im_end|>"


@pytest.mark.parametrize(
    "format", ["%Y-%m-%d", "%B %-d, %Y", "%A, %d/%m/%y %H:%M:%S", "%F %T", "%-I:%M %p", "%j of %Y, %a %b", "%-m.%-d."]
)
def test_any_format_of_a_date_is_written_as_the_clock_would(format: str) -> None:
    template = "{{ strftime_now('" + format + "') }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
    for whole in (template, f"\n  {template}"):
        text = written(byte_tokenizer(whole), TURNS[:1]).text
        assert text == whole.partition("{{")[0] + DATE.strftime(format) + "What is ptosis?"


def test_words_that_stand_elsewhere_too_are_not_taken_for_the_answer() -> None:
    same = [{"role": "user", "content": "yes"}, {"role": "assistant", "content": "yes"}]
    chat = written(byte_tokenizer(SMOLLM2), same)
    text, ((start, end),) = chat.text, chat.spans
    assert text[start:end] == "yes<|im_end|>"
    assert text[:start].endswith("<|im_start|>assistant\n")


def test_turns_that_a_template_rewrites_are_read_and_the_last_one_is_learned() -> None:
    """FORGETS_THOUGHTS writes the tags of what was thought in the last turn only."""
    assert said(FORGETS_THOUGHTS, TURNS[:2]) == ["<think>\n\n</think>\n\nA drooping eyelid.<|im_end|>"]
    chat = written(byte_tokenizer(FORGETS_THOUGHTS), TURNS)
    assert chat.remarks == (REWRITTEN,)
    assert learned(chat) == ["<think>\n\n</think>\n\nA small pupil.<|im_end|>"]
    assert "assistant\nA drooping eyelid.<|im_end|>" in chat.text


FORGETS_REASONING = (
    "{% set last = namespace(user=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set last.user = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}[{{ m.role }}]"
    "{% if m.role == 'assistant' and m.reasoning_content and loop.index0 > last.user %}"
    "<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
"""Keeps what was thought since the user spoke last."""


def test_what_was_thought_is_learned_where_it_is_written() -> None:
    thinking = [turn | ({"reasoning_content": "Hm."} if turn["role"] == "assistant" else {}) for turn in TURNS]
    chat = written(byte_tokenizer(FORGETS_REASONING), thinking)
    assert learned(chat) == ["<think>Hm.</think>A small pupil.<|im_end|>"]
    assert chat.remarks == (REWRITTEN,)
    behind = written(byte_tokenizer(FORGETS_REASONING), [*thinking, {"role": "user", "content": "Thanks."}])
    assert (learned(behind), behind.text) == (learned(chat), chat.text)  # as it is given, and nobody reads the rest
    asked_back = [*thinking[:3], {"role": "tool", "content": "3 mm"}, thinking[3]]
    assert learned(written(byte_tokenizer(FORGETS_REASONING), asked_back)) == learned(chat)
    chain = [*thinking[:3], thinking[1], {"role": "tool", "content": "3 mm"}, thinking[3]]
    thoughts = ["<think>Hm.</think>A drooping eyelid.<|im_end|>", "<think>Hm.</think>A small pupil.<|im_end|>"]
    assert learned(written(byte_tokenizer(FORGETS_REASONING), chain)) == thoughts
    assert said(FORGETS_REASONING, TURNS) == ["A drooping eyelid.<|im_end|>", "A small pupil.<|im_end|>"]


@pytest.mark.parametrize("tag", ["<think>\n", "<reasoning>", "[THINK]", "<think>\n\n</think>\n\n"])
def test_a_prompt_that_opens_reasoning_asks_for_turns_that_have_none(tag: str) -> None:
    template = (
        "{% for m in messages %}<{{ m.role }}>\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>\n" + tag.replace("\n", "{{ '\n' }}") + "{% endif %}"
    )
    for turns, answers in ((TURNS[:2], 1), (TURNS, 2)):
        chat = written(byte_tokenizer(template), turns)
        assert learned(chat) == ["A drooping eyelid.<|im_end|>", "A small pupil.<|im_end|>"][:answers]
        assert chat.remarks == (OPENED,)
    thought = {"role": "assistant", "content": f"{tag}A drooping eyelid."}
    chat = written(byte_tokenizer(template), [TURNS[0], thought])
    assert learned(chat) == ["A drooping eyelid.<|im_end|>"]
    assert chat.remarks == ()


def test_a_last_turn_that_has_another_prompt_is_refused() -> None:
    template = "{% for m in messages %}{{ m.content }};{% endfor %}{% if add_generation_prompt %}bot:{% endif %}"
    with pytest.raises(ValueError, match="writes message 4 of 4, of the assistant, in another way than its prompt"):
        said(template, TURNS)


ALTERNATES = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
    "{% endif %}{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
ONE_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}\n{% endif %}{% for m in messages %}"
    "{% if m.role != 'system' %}{{ m.role }}: {{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""Others are left out, as some templates do."""


def test_an_assistant_that_speaks_first_is_read_or_left_out_as_the_template_allows() -> None:
    greeting = {"role": "assistant", "content": "Hello."}
    for template, remark in ((ONE_SYSTEM, SPEAKS_FIRST), (ALTERNATES, LEFT_OUT)):
        chat = written(byte_tokenizer(template), [greeting, *TURNS])
        assert learned(chat) == ["A drooping eyelid.<|im_end|>", "A small pupil.<|im_end|>"]
        assert chat.remarks == (remark,)
        assert ("Hello." in chat.text) == (remark == SPEAKS_FIRST)
    with pytest.raises(ValueError, match="the assistant speaks first"):
        said(SMOLLM2, TURNS[1:2])


def test_several_messages_of_the_system_are_all_written() -> None:
    more = {"role": "system", "content": "Be kind."}
    both = [SYSTEM, more, *TURNS[:2]]
    chat = written(byte_tokenizer(SMOLLM2), both)
    assert "system\nBe brief.<|im_end|>\n<|im_start|>system\nBe kind.<|im_end|>" in chat.text
    assert chat.remarks == ()
    chat = written(byte_tokenizer(ONE_SYSTEM), both)
    assert chat.text.startswith("Be brief.\n\nBe kind.\nuser: ")
    assert chat.remarks == (JOINED,)
    with pytest.raises(ValueError, match="leaves out message 3 of 4, of the system"):
        said(ONE_SYSTEM, [*TURNS[:2], more, TURNS[3]])
    empty = [SYSTEM | {"content": ""}, *TURNS[:2]]
    assert "system\n<|im_end|>" in written(byte_tokenizer(SMOLLM2), empty).text


def test_what_the_template_refuses_is_told() -> None:
    with pytest.raises(ValueError, match=r"chat template refuses it .*System role not supported"):
        said(GEMMA, [SYSTEM, *TURNS])


TOOLS = [{"type": "function", "function": {"name": "dose", "parameters": {"type": "object"}}}]
CALLING: list[dict[str, Any]] = [
    {"role": "user", "content": "How much?"},
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "dose", "arguments": {"kg": 70}}}]},
    {"role": "tool", "content": "5 mg"},
    {"role": "assistant", "content": "5 mg."},
]
WRITES_CALLS = (
    "{% if tools %}[tools]{{ tools[0].function.name }}<|im_end|>{% endif %}{% for m in messages %}[{{ m.role }}]"
    "{{ m.content }}{% for call in m.tool_calls or [] %}{{ call.function.name }}({{ call.function.arguments.kg }})"
    "{% endfor %}<|im_end|>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_calls_of_tools_are_learned_and_their_definitions_read() -> None:
    chat = written(byte_tokenizer(WRITES_CALLS), CALLING, TOOLS)
    assert chat.text.startswith("[tools]dose<|im_end|>[user]How much?<|im_end|>[assistant]dose(70)")
    assert learned(chat) == ["dose(70)<|im_end|>", "5 mg.<|im_end|>"]
    assert chat.remarks == ()
    assert written(byte_tokenizer(WRITES_CALLS), CALLING).text == chat.text.removeprefix("[tools]dose<|im_end|>")


def test_a_template_that_leaves_out_tools_does_not_teach_to_say_nothing() -> None:
    """SmolLM2's writes neither tools nor calls: a turn of a call alone would be learned as an empty one."""
    chat = written(byte_tokenizer(SMOLLM2), CALLING, TOOLS)
    assert learned(chat) == ["5 mg.<|im_end|>"]
    assert chat.remarks == (CALLS_LEFT_OUT, TOOLS_LEFT_OUT)
    spoken = [CALLING[0], CALLING[1] | {"content": "Let me see."}]
    assert learned(written(byte_tokenizer(SMOLLM2), spoken)) == ["Let me see.<|im_end|>"]
    with pytest.raises(ValueError, match="leaves out what the assistant calls of tools, and it says nothing else"):
        written(byte_tokenizer(SMOLLM2), CALLING[:2])
