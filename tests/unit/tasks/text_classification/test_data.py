"""A dataset of labelled texts: its digest knows of every text and target."""

import json
from pathlib import Path
from typing import Any

import pytest

from hf_accum.config.recipe import RecipeConfig
from hf_accum.distributed.ranks import OneRank
from hf_accum.tasks.labels import Problem
from hf_accum.tasks.text_classification.data import LabelledTexts, open_labelled_texts

TARGETS: dict[Problem, list[Any]] = {
    "regression": [1.0, 2.0, 2.5],
    "single_label_classification": ["a", "b", "c"],
    "multi_label_classification": [["a"], ["a", "b"], ["b", "c"]],
}


def opened(folder: Path, problem: Problem, targets: list[Any], text: str = "text") -> LabelledTexts:
    rows = [{"text": f"{text} {number}", "label": targets[number % len(targets)]} for number in range(40)]
    file = folder / f"{len(list(folder.iterdir()))}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_labelled_texts(
        str(file),
        OneRank(),
        RecipeConfig(eval_fraction=0.3),
        text_column="text",
        label_column="label",
        group_column="text",
        problem=problem,
        label_names=(),
        label_separator="|",
        needs_counts=False,
    )


@pytest.mark.parametrize("problem", list(TARGETS))
def test_other_targets_or_texts_have_another_digest(tmp_path: Path, problem: Problem) -> None:
    targets = TARGETS[problem]
    first = opened(tmp_path, problem, targets).digest
    assert first is not None
    assert opened(tmp_path, problem, targets).digest == first
    assert opened(tmp_path, problem, targets[::-1]).digest != first
    assert opened(tmp_path, problem, targets, "other").digest != first
