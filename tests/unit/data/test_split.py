"""A dataset split into rows to train on and held-out ones: no row in both, none lost."""

import json
from pathlib import Path
from typing import Any

import pytest

from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.source import Row
from hf_accum.data.split import Observed, SplitData, open_split
from hf_accum.distributed.ranks import OneRank
from hf_accum.errors import UserError


def save(file: Path, texts: list[str]) -> None:
    rows = [{"text": text, "patient": text[0], "label": text[-1]} for text in texts]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def opened(path: Path, **flags: Any) -> SplitData:
    return open_split(str(path), ["text", "label"], RecipeConfig(**flags), group_column="patient")


def observe(row: Row) -> Observed:
    return (row["label"],), row["text"]


TEXTS = [f"{patient}{number} {'ab'[number % 2]}" for patient in "pqrstuvw" for number in range(4)]


def test_a_fraction_of_the_groups_is_held_out_and_every_row_is_on_one_side(tmp_path: Path) -> None:
    save(tmp_path / "rows.jsonl", TEXTS)
    data = opened(tmp_path / "rows.jsonl", eval_fraction=0.5)
    sides: dict[bool, set[str]] = {True: set(), False: set()}
    for _, row in data.source.read(0, 0):
        assert isinstance(row, dict)
        sides[data.is_held_out(row, of_eval_source=False)].add(row["patient"])
    assert not sides[True] & sides[False]
    assert sides[True] | sides[False] == set("pqrstuvw")
    surveyed = data.surveyed(observe, OneRank(), "error")
    assert (surveyed.num_train, surveyed.num_held_out) == (4 * len(sides[False]), 4 * len(sides[True]))
    assert surveyed.label_counts == {label: 2 * len(sides[False]) for label in "ab"}
    assert surveyed.held_out_label_counts == {label: 2 * len(sides[True]) for label in "ab"}


def test_a_split_of_its_own_is_held_out_whole(tmp_path: Path) -> None:
    save(tmp_path / "train.jsonl", TEXTS)
    save(tmp_path / "validation.jsonl", TEXTS[:3])
    data = opened(tmp_path, eval_split="validation")
    assert data.eval_fraction is None
    assert data.source is not data.eval_source
    row = {"text": "x", "patient": "p", "label": "a"}
    assert [data.is_held_out(row, of_eval_source) for of_eval_source in (False, True)] == [False, True]
    surveyed = data.surveyed(observe, OneRank(), "error")
    assert (surveyed.num_train, surveyed.num_held_out) == (len(TEXTS), 3)
    assert surveyed.digest != data.with_rows(lambda s: s).surveyed(lambda r: ((), 0), OneRank(), "error").digest


def test_a_side_without_rows_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "rows.jsonl", ["p0 a"])
    with pytest.raises(UserError, match=r"the dataset has (1|0) usable examples to train on and (0|1) held out"):
        opened(tmp_path / "rows.jsonl").surveyed(observe, OneRank(), "error")


def test_names_that_no_row_has_are_told_where_labels_were_counted(tmp_path: Path) -> None:
    save(tmp_path / "rows.jsonl", TEXTS)
    data = opened(tmp_path / "rows.jsonl", eval_fraction=0.5)
    assert data.notes_of_missing("no row has", ["a", "c"]) == []
    surveyed = data.surveyed(observe, OneRank(), "error")
    assert surveyed.notes_of_missing("no row has", ["a", "c", "d"]) == ["no row has c, d"]
    assert surveyed.notes_of_missing("no row has", ["first", "second"], keys=["a", "z"]) == ["no row has second"]
