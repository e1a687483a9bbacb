"""Plain texts as passages: no token lost, each predicted once; what is too long is said."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chats import FORGETS_THOUGHTS, byte_tokenizer
from thread_ranks import run_ranks
from tiny import WORDS, make_tokenizer

from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.source import BadRow
from hf_accum.distributed.ranks import OneRank, Ranks
from hf_accum.tasks.causal_lm.chat import REWRITTEN
from hf_accum.tasks.causal_lm.data import PassageData, Reader, WholeTexts, open_passages, passage_of
from hf_accum.tasks.causal_lm.instructions import Conversations, PromptsAndResponses
from hf_accum.tasks.special_tokens import frame_of


def opened(folder: Path, rows: list[Any], reader: Reader, ranks: Ranks | None = None, **how: Any) -> PassageData:
    file = folder / "rows.jsonl"
    if not file.exists():
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = RecipeConfig(**{"max_length": 12, "eval_fraction": 0.3, **how})
    return open_passages(str(file), ranks or OneRank(), config, reader, group_column=config.group_column)


@pytest.mark.parametrize("has_special_tokens", [True, False])
@pytest.mark.parametrize("max_length", [3, 7, 100])
def test_each_token_of_a_text_is_predicted_once(has_special_tokens: bool, max_length: int) -> None:
    tokenizer = make_tokenizer() if has_special_tokens else byte_tokenizer()
    frame = frame_of(tokenizer)
    assert len(frame.before) == has_special_tokens
    for length in (1, 2, 3, 8, 29):
        text = " ".join(WORDS[index % 40] for index in range(length))
        key, passages = WholeTexts(tokenizer, "text", max_length).read({"text": text})
        assert key == text
        predicted: list[int] = []
        for index, passage in enumerate(passages):
            assert passage.num_truncated == 0
            assert len(passage.tokens) <= max_length
            assert not passage.is_target[0]
            assert tuple(passage.tokens[: len(frame.before)]) == frame.before
            if index:  # the token before the first predicted one is the one that stands there in the text
                before = int(np.argmax(passage.is_target)) - 1
                assert passage.tokens[before] == predicted[-1]
            predicted += passage.tokens[passage.is_target].tolist()
        whole = [*tokenizer(text, add_special_tokens=False)["input_ids"], *frame.after]
        assert predicted == (whole if has_special_tokens else whole[1:])


def test_a_text_ends_with_the_token_that_ends_texts() -> None:
    assert frame_of(byte_tokenizer()).after == (byte_tokenizer().eos_token_id,)
    assert frame_of(make_tokenizer()).after == (3,)  # [SEP]: that tokenizer has no other


def test_a_text_in_which_there_is_nothing_to_predict_is_a_bad_row() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None  # type: ignore[assignment]
    with pytest.raises(BadRow, match="1 tokens: there is nothing to predict one from"):
        WholeTexts(tokenizer, "text", 8).read({"text": "x"})
    with pytest.raises(ValueError, match="`max_length` 2: has to leave place for text"):
        WholeTexts(make_tokenizer(), "text", 2)


def pairs(number: int) -> list[dict[str, str]]:
    return [{"question": WORDS[index], "answer": " ".join(WORDS[: 1 + index])} for index in range(number)]


def test_what_is_cut_off_is_counted_and_named_over_ranks(tmp_path: Path) -> None:
    """[CLS] question answer [SEP]: 3 tokens beside the answer's."""
    reader = PromptsAndResponses(make_tokenizer(), "question", "answer", 12)
    data = opened(tmp_path, pairs(20), reader)
    lost = {index: 4 + index - 12 for index in range(9, 20)}
    assert (data.truncated.num_passages, data.truncated.num_tokens) == (11, sum(lost.values()))
    (note,) = data.notes
    assert note.startswith(f"11 examples are longer than `max_length` 12 and are cut: {sum(lost.values())} tokens")
    assert note.endswith(f"lost (of {', '.join(f'rows.jsonl row {10 + i} ({1 + i})' for i in range(5))}, ...)")
    for of_rank in run_ranks(2, lambda ranks: opened(tmp_path, [], reader, ranks)):
        assert of_rank.truncated == data.truncated
        assert of_rank.digest == data.digest
    rows = [row for _, row in data.source.read(0, 0) if isinstance(row, dict)]
    assert [passage_of(row).num_truncated for row in rows] == [lost.get(index, 0) for index in range(20)]
    assert opened(tmp_path, [], reader, num_epochs=None, max_steps=1).notes == []


def test_rows_know_whether_they_are_plain_texts(tmp_path: Path) -> None:
    for reader in (
        WholeTexts(make_tokenizer(), "question", 12),
        PromptsAndResponses(make_tokenizer(), "question", "answer", 12),
    ):
        rows = opened(tmp_path, pairs(20), reader).source.read(0, 0)
        is_text = {passage_of(row).is_text for _, row in rows if isinstance(row, dict)}
        assert is_text == {isinstance(reader, WholeTexts)}


def test_equal_prompts_are_on_one_side(tmp_path: Path) -> None:
    rows = [{"question": WORDS[index % 10], "answer": WORDS[index % 7]} for index in range(40)]
    reader = PromptsAndResponses(make_tokenizer(), "question", "answer", 12)
    data = opened(tmp_path, rows, reader)
    sides: dict[str, set[bool]] = {}
    for (_, row), of_file in zip(data.source.read(0, 0), rows, strict=True):
        assert isinstance(row, dict)
        sides.setdefault(of_file["question"], set()).add(data.is_held_out(row, of_eval_source=False))
    assert all(len(found) == 1 for found in sides.values())
    assert set.union(*sides.values()) == {True, False}


@pytest.mark.parametrize(("text", "group"), [("text", "patient"), ("place", "tokens")])
def test_a_group_column_splits(tmp_path: Path, text: str, group: str) -> None:
    rows = [{text: f"{WORDS[index // 4]} {WORDS[0]} {WORDS[index % 4]}", group: index // 4} for index in range(40)]
    data = opened(tmp_path, rows, WholeTexts(make_tokenizer(), text, 12), group_column=group)
    sides = [data.is_held_out(row, False) for _, row in data.source.read(0, 0) if isinstance(row, dict)]
    assert all(len(set(sides[start : start + 4])) == 1 for start in range(0, 40, 4))


def test_what_is_not_learned_as_the_data_has_it_is_said_over_ranks(tmp_path: Path) -> None:
    def chat(number: int) -> dict[str, Any]:
        turns = [{"from": "human", "value": f"{number}?"}, {"from": "gpt", "value": "yes"}]
        return {"messages": turns * 2 if number % 3 == 0 else turns}

    reader = Conversations(byte_tokenizer(FORGETS_THOUGHTS), "messages", 999)
    data = opened(tmp_path, [chat(number) for number in range(20)], reader)
    assert data.notes == [f"7 examples: {REWRITTEN}"]
    for of_rank in run_ranks(2, lambda ranks: opened(tmp_path, [], reader, ranks)):
        assert of_rank.notes == data.notes
