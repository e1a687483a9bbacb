"""Lengths before a training: counted here by hand, on words that are a token each."""

from pathlib import Path
from typing import Any

from tiny import make_tokenizer

from hf_accum.config.long_texts import TextWindows
from hf_accum.config.recipe import RecipeConfig
from hf_accum.distributed.ranks import OneRank
from hf_accum.run.lengths import notes_of_lengths
from hf_accum.tasks.labels import LabelColumn
from hf_accum.tasks.text_classification.data import LabelledTexts, open_labelled_texts
from hf_accum.tasks.text_classification.task import TextClassification, build_objective
from hf_accum.tasks.text_classification.windows import LongTextClassification

MOST = 22


def opened(tmp_path: Path, num_words: list[int], **flags: Any) -> LabelledTexts:
    file = tmp_path / "rows.csv"
    lines = [f"{' '.join(['w1'] * n)} w{i % 9},{i % 2}\n" for i, n in enumerate(num_words)]
    file.write_text("text,label\n" + "".join(lines))
    columns = {"text_column": "text", "label_column": "label", "group_column": "text"}
    how: dict[str, Any] = columns | {"label_names": ("0", "1"), "label_separator": "|", "needs_counts": False}
    problem = "single_label_classification"
    return open_labelled_texts(str(file), OneRank(), RecipeConfig(**flags), problem=problem, **how)


def notes(data: LabelledTexts) -> list[str]:
    labels: LabelColumn = data.labels
    return notes_of_lengths(
        data, TextClassification("text", labels, build_objective(labels), make_tokenizer(), MOST), MOST
    )


def test_all_rows_are_counted_where_they_are_few(tmp_path: Path) -> None:
    """Of 1 to 40 words, one more, and two special tokens: 4 to 43; those of more than 22 are the last 21."""
    (note,) = notes(opened(tmp_path, list(range(1, 41))))
    assert note == (
        "lengths in tokens: 5 % at most 5, half at most 23, 95 % at most 41, the longest 43; 21 are longer than "
        "`max_length` 22 and lose their end"
    )
    (note,) = notes(opened(tmp_path, list(range(1, 20))))
    assert note.endswith("the longest 22; none is cut")


def test_of_many_a_sample_and_the_longest(tmp_path: Path) -> None:
    sizes = [9 * n % 20 for n in range(1_500)]
    sizes[700] = 500
    (note,) = notes(opened(tmp_path, sizes))
    assert "the longest 503; about 0.1% are longer than `max_length` 22" in note
    assert note.split(", of a sample of ")[1] in {f"{n} of the 1,500 examples" for n in ("1,000", "1,001")}


def test_texts_in_windows_are_told_as_a_whole(tmp_path: Path) -> None:
    """Of 2 to 13 words; windows of 8 with 2 of them special and 2 shared: two from 7 words on, three from 11 on."""
    data = opened(tmp_path, list(range(1, 13)))
    objective = build_objective(data.labels)
    for most, said in ((9, "none is cut"), (2, "3 are longer than `max_windows` allow and lose their end")):
        how = TextWindows(8, 2, most, "mean")
        task = LongTextClassification("text", data.labels, objective, make_tokenizer(), 8, windows=how)
        (note,) = notes_of_lengths(data, task, 8)
        longest = 13 + 2 * 3 + 2 * 2 if most == 9 else 13 + 2 * 2 + 2
        several = f"7 have several windows, the longest {min(most, 3)} (what these share counts twice)"
        assert note.endswith(f"the longest {longest}; {said}; {several}")


def test_what_was_not_read_is_not_told(tmp_path: Path) -> None:
    assert notes(opened(tmp_path, [1, 2, 3], num_epochs=None, max_steps=1)) == []
