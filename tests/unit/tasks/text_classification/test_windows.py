"""Windows of long texts: cut as tokenizers cut them, pooled in training and evaluation, each text one example."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import WORDS, make_tokenizer

from hf_accum.accumulation.example import Example, inputs_of
from hf_accum.accumulation.part_cache import LinearLoss
from hf_accum.config.long_texts import TextWindows, WindowPooling
from hf_accum.tasks.labels import LabelColumn
from hf_accum.tasks.text_classification.task import TextClassification, build_objective
from hf_accum.tasks.text_classification.windows import LongTextClassification
from hf_accum.tasks.tokenization import tokenize

LABELS = LabelColumn("label", "single_label_classification", ("a", "b", "c"))
TOKENIZER = make_tokenizer()


def make_task(
    max_length: int = 8, overlap: int = 2, most: int = 64, pooling: WindowPooling = "mean"
) -> LongTextClassification:
    objective = build_objective(LABELS, class_weights=[1.0, 2.0, 4.0])
    how = TextWindows(max_length, overlap, most, pooling)
    return LongTextClassification("text", LABELS, objective, TOKENIZER, max_length, windows=how)


def encode(task: TextClassification, texts: Sequence[str]) -> list[Example]:
    rows = [(f"0:{n}", task.prepare({"text": text, "label": LABELS.names[n % 3]})) for n, text in enumerate(texts)]
    return task.encode(rows)


def words(number: int) -> str:
    return " ".join(WORDS[index % len(WORDS)] for index in range(number))


@given(st.integers(1, 60), st.integers(4, 12), st.data())
def test_windows_are_those_of_the_tokenizer_s_own_stride(
    num_words: int, max_length: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, max_length - 3))
    (example,) = encode(make_task(max_length, overlap), [words(num_words)])
    own: Any = TOKENIZER(
        words(num_words), truncation=True, max_length=max_length, stride=overlap, return_overflowing_tokens=True
    )
    assert [part.features["input_ids"].tolist() for part in inputs_of([example])] == own["input_ids"]
    assert example.length == sum(map(len, own["input_ids"]))
    assert example.num_truncated_tokens == 0


def test_the_first_windows_are_shown_as_the_model_sees_them() -> None:
    task = make_task(max_length=4, overlap=0)
    for number, told in ((2, []), (5, []), (9, [("windows", "2 more are not shown")])):
        (example,) = encode(task, [words(number)])
        expected = [TOKENIZER.decode(part.features["input_ids"]) for part in inputs_of([example])]
        lines = task.preview(example)
        assert lines == [*((f"window {n}", text) for n, text in enumerate(expected[:3], 1)), *told, ("label", "a")]


def test_a_short_text_is_the_example_that_it_is_without_windows() -> None:
    plain = TextClassification("text", LABELS, build_objective(LABELS, class_weights=[1.0, 2.0, 4.0]), TOKENIZER, 8)
    (mine,), (expected,) = encode(make_task(), [words(6)]), encode(plain, [words(6)])
    assert (mine.id, mine.length, mine.weight, mine.parts) == (expected.id, expected.length, expected.weight, ())
    assert np.array_equal(mine.features["input_ids"], expected.features["input_ids"])


def test_a_text_counts_once_however_many_windows_it_has() -> None:
    examples = encode(make_task(), [words(6), words(7), words(40)])
    assert [len(example.parts) for example in examples] == [0, 2, 10]
    assert [example.weight for example in examples] == [1.0, 2.0, 4.0]
    assert len({part.id for part in inputs_of(examples)}) == 13


@pytest.mark.parametrize(("num_words", "num_cut"), [(14, 0), (15, 1), (40, 26)])
def test_what_lies_beyond_the_last_window_is_cut_and_counted(num_words: int, num_cut: int) -> None:
    (example,) = encode(make_task(most=3), [words(num_words)])
    assert example.num_truncated_tokens == num_cut
    assert len(example.parts) == 3
    last = example.parts[-1].features["input_ids"].tolist()
    assert last[1:-1] == TOKENIZER(words(num_words), add_special_tokens=False)["input_ids"][8:14]


def test_one_window_at_most_is_truncation() -> None:
    (example,) = encode(make_task(most=1), [words(40)])
    ((ids, num_cut),) = tokenize(TOKENIZER, [words(40)], 8)
    assert np.array_equal(example.features["input_ids"], ids)
    assert (example.num_truncated_tokens, example.parts) == (num_cut, ())


def test_an_overlap_that_leaves_no_token_is_refused() -> None:
    make_task(8, 5)
    with pytest.raises(ValueError, match=r"`window_overlap` 6: has to be below 6: a window has 8 tokens"):
        make_task(8, 6)


class Scores(torch.nn.Module):
    """Logits by the first word of a window, and a score by the second."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(len(TOKENIZER), width)

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        return type("Output", (), {"logits": self.table(input_ids[:, 1])})()


@pytest.mark.parametrize("pooling", ["mean", "max", "attention"])
def test_training_and_evaluation_pool_alike(pooling: WindowPooling) -> None:
    torch.manual_seed(0)
    task, model = make_task(pooling=pooling), Scores(3 + (pooling == "attention"))
    examples = encode(task, [words(30), words(3), words(9)])
    windows = inputs_of(examples)
    batch = task.collate(windows)
    outputs = task.outputs(model, batch)
    found = task.predict(model, batch)
    rows = dict(zip([window.id for window in reversed(windows)], found.predictions.flip(0), strict=True))
    whole = task.whole(examples, rows)
    assert torch.equal(whole.loss, task.pooled_loss(examples, outputs))
    assert whole.references.tolist() == [0, 1, 2]
    assert len(whole.predictions) == 3
    short = task.collate(examples[1:2])
    of_short = outputs[[len(examples[0].parts)]]
    torch.testing.assert_close(task.summed_loss(model, short), task.pooled_loss(examples[1:2], of_short))
    linear = task.summed_loss(model, (batch[0], LinearLoss(torch.tensor(2.0), torch.ones_like(outputs))))
    assert linear.item() == 2.0
