"""What the assistant says, found in what chat templates of real models write."""

from datetime import datetime
from typing import Any

import pytest
from chats import FORGETS_THOUGHTS, GEMMA, LLAMA3, SMOLLM2, TELLS_THE_DATE, byte_tokenizer

from hf_accum.tasks.causal_lm.chat import DATE, written

TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "What is ptosis?"},
    {"role": "assistant", "content": "A drooping eyelid."},
    {"role": "user", "content": "And miosis?"},
    {"role": "assistant", "content": "A small pupil."},
]
SYSTEM = {"role": "system", "content": "Be brief."}


def said(template: str, messages: list[dict[str, Any]], eos_token: str = "<|im_end|>") -> list[str]:
    text, spans = written(byte_tokenizer(template, eos_token), messages)
    return [text[start:end] for start, end in spans]


@pytest.mark.parametrize(
    ("template", "end"), [(SMOLLM2, "<|im_end|>"), (LLAMA3, "<|eot_id|>"), (GEMMA, "<end_of_turn>")]
)
def test_turns_of_the_assistant_are_found_with_what_ends_them(template: str, end: str) -> None:
    assert said(template, TURNS, end) == [f"A drooping eyelid.{end}", f"A small pupil.{end}"]
    assert said(template, TURNS[:2], end) == [f"A drooping eyelid.{end}"]
    if template != GEMMA:
        assert said(template, [SYSTEM, *TURNS], end) == [f"A drooping eyelid.{end}", f"A small pupil.{end}"]


def test_the_text_is_the_template_s() -> None:
    text, _ = written(byte_tokenizer(SMOLLM2), TURNS[:2])
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is ptosis?<|im_end|>\n<|im_start|>assistant\nA drooping eyelid.<|im_end|>\n"
    )


def test_a_template_that_writes_today_s_date_writes_the_same_on_any_day() -> None:
    """A run goes on behind midnight as before. transformers by itself asks the clock."""
    tokenizer = byte_tokenizer(TELLS_THE_DATE)
    today = str(tokenizer.apply_chat_template(TURNS[:2], tokenize=False))
    text, ((start, end),) = written(tokenizer, TURNS[:2])
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
        text, _ = written(byte_tokenizer(whole), TURNS[:1])
        assert text == whole.partition("{{")[0] + DATE.strftime(format) + "What is ptosis?"


def test_words_that_stand_elsewhere_too_are_not_taken_for_the_answer() -> None:
    same = [{"role": "user", "content": "yes"}, {"role": "assistant", "content": "yes"}]
    text, ((start, end),) = written(byte_tokenizer(SMOLLM2), same)
    assert text[start:end] == "yes<|im_end|>"
    assert text[:start].endswith("<|im_start|>assistant\n")


def test_a_template_that_rewrites_what_was_said_is_refused() -> None:
    assert said(FORGETS_THOUGHTS, TURNS[:2]) == ["<think>\n\n</think>\n\nA drooping eyelid.<|im_end|>"]
    with pytest.raises(ValueError, match="writes message 2 of 4 in another way when the conversation goes on"):
        said(FORGETS_THOUGHTS, TURNS)


def test_what_the_template_refuses_is_told() -> None:
    with pytest.raises(ValueError, match=r"chat template refuses it .*System role not supported"):
        said(GEMMA, [SYSTEM, *TURNS])
    with pytest.raises(ValueError, match="the assistant speaks first"):
        said(SMOLLM2, TURNS[1:])
