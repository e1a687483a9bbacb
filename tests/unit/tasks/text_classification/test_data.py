"""A dataset of labelled texts: its digest knows of every text and target."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.held_out import by_hash
from hf_accum.distributed.ranks import OneRank
from hf_accum.errors import UserError
from hf_accum.tasks.labels import Problem
from hf_accum.tasks.text_classification.data import LabelledTexts, open_labelled_texts

TARGETS: dict[Problem, list[Any]] = {
    "regression": [1.0, 2.0, 2.5],
    "single_label_classification": ["a", "b", "c"],
    "multi_label_classification": [["a"], ["a", "b"], ["b", "c"]],
}


def opened(
    folder: Path,
    problem: Problem,
    targets: list[Any],
    text: str = "text",
    label_names: tuple[str, ...] = (),
    flags: dict[str, Any] | None = None,
    **how: Any,
) -> LabelledTexts:
    rows = [{"text": f"{text} {number}", "label": targets[number % len(targets)]} for number in range(40)]
    file = folder / f"{len(list(folder.iterdir()))}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options: dict[str, Any] = {"eval_fraction": 0.3} | (flags or {})
    columns: dict[str, Any] = {"label_column": "label"} | how
    return open_labelled_texts(
        str(file),
        OneRank(),
        RecipeConfig(**options),
        text_column="text",
        group_column="text",
        problem=problem,
        label_names=label_names,
        label_separator="|",
        needs_counts=False,
        **columns,
    )


@pytest.mark.parametrize("problem", list(TARGETS))
def test_other_targets_or_texts_have_another_digest(tmp_path: Path, problem: Problem) -> None:
    targets = TARGETS[problem]
    first = opened(tmp_path, problem, targets).digest
    assert first is not None
    assert opened(tmp_path, problem, targets).digest == first
    assert opened(tmp_path, problem, targets[::-1]).digest != first
    assert opened(tmp_path, problem, targets, "other").digest != first


SINGLE: Problem = "single_label_classification"
MULTI: Problem = "multi_label_classification"


def test_codes_meet_names_by_a_mapping_alone(tmp_path: Path) -> None:
    names = ("immediate", "urgent", "routine")
    skips = {"on_bad_row": "skip"}
    with pytest.raises(
        UserError, match=r"0\.jsonl, row 1: field 'label': label '1' is a number, .*1=immediate"
    ) as error:
        opened(tmp_path, SINGLE, [1, 2, 3], label_names=names, flags=skips)
    assert "mend" not in str(error.value)
    flags = ("1=immediate", "2=urgent", "3=routine")
    data = opened(tmp_path, SINGLE, [1, 2, 3], label_names=flags)
    assert data.labels.names == names
    assert tuple(data.labels.as_flag) == flags
    assert [data.labels.encode({"label": code}) for code in (1, 2, 3)] == [0, 1, 2]
    assert Counter(data.label_counts) + Counter(data.held_out_label_counts) == {
        "immediate": 14,
        "urgent": 13,
        "routine": 13,
    }
    assert not data.bad_rows


def test_lists_of_a_number_for_each_label(tmp_path: Path) -> None:
    rows = [[1, 0, 0], [0, 1, 1], [0.0, 0.0, 0.0], "[1 1 0]"]
    data = opened(tmp_path, MULTI, rows, label_names=("a", "b", "c"))
    assert Counter(data.label_counts) + Counter(data.held_out_label_counts) == {"a": 20, "b": 20, "c": 10}
    with pytest.raises(UserError, match=r"row 1: field 'label': \[1, 0\] can be a 0 or 1 for each of the 2 labels"):
        opened(tmp_path, MULTI, [[1, 0], [0, 1]], label_names=("a", "b"))
    data = opened(tmp_path, MULTI, [[1, 0], [0, 1]], label_names=("a", "b"), label_format="multi_hot")
    assert Counter(data.label_counts) + Counter(data.held_out_label_counts) == {"a": 20, "b": 20}
    with pytest.raises(UserError, match="`label_format` multi_hot: has to go with the names of the labels"):
        opened(tmp_path, MULTI, [[1, 0], [0, 1]], label_format="multi_hot")


def test_a_column_for_each_label(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("text,fever,cough\n" + "".join(f"t{n},{n % 2},{'yes' if n % 4 else 'no'}\n" for n in range(40)))
    how: dict[str, Any] = {
        "text_column": "text",
        "label_column": ["fever", "cough"],
        "group_column": "text",
        "problem": MULTI,
    }
    how |= {"label_names": (), "label_separator": "|", "needs_counts": False}
    data = open_labelled_texts(str(file), OneRank(), RecipeConfig(), **how)
    assert data.labels.names == ("fever", "cough")
    ((_, row),) = list(data.source.read(0, 1))[:1]
    assert data.labels.encode(row) == [1.0, 1.0]  # type: ignore[arg-type]
    assert (data.held_out_label_counts, data.label_counts) == ({"fever": 2, "cough": 3}, {"fever": 18, "cough": 27})


def test_labels_with_spaces_around_them_are_said(tmp_path: Path) -> None:
    data = opened(tmp_path, SINGLE, [" urgent", "urgent", "routine", "urgent"])
    assert data.labels.names == ("routine", "urgent")
    assert data.notes[-1] == "10 labels have spaces around them, and are read without: ' urgent'"


def test_one_number_written_in_two_ways_concerns_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"labels 0 and 0\.0, one number written in two ways, .* whole column"):
        opened(tmp_path, SINGLE, ["0", "1", "0.0"])


def test_without_a_pass_it_is_said_what_was_not_counted(tmp_path: Path) -> None:
    flags = {"num_epochs": None, "max_steps": 1}
    data = opened(tmp_path, SINGLE, ["a", "b"], label_names=("a", "b"), flags=flags)
    assert data.num_train is None
    assert data.held_out == by_hash(0.3)
    (note,) = data.notes
    assert note.startswith("the rows were not read before (`num_epochs null`)")
    assert note.endswith("rows are held out by a hash of their group, whatever they have")
