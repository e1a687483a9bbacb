"""A dataset split into rows to train on and held-out ones: no row in both, none lost."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from thread_ranks import run_ranks

from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.source import BadRow, Row, Source, open_source
from hf_accum.data.split import Observed, SplitData, Survey, is_held_out, open_split, survey
from hf_accum.distributed.ranks import OneRank, RankFailed
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


def observed_row(row: Row) -> tuple[bool, tuple[str, ...], object]:
    if "labels" not in row:
        raise BadRow("labels", "missing")
    return bool(row["held_out"]), tuple(row["labels"]), row.get("text")


def source_of(folder: Path, shards: list[list[Any]]) -> Source:
    for index, rows in enumerate(shards):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"train-{index:02}.jsonl").write_text(lines)
    return open_source(str(folder), "train")


rows = st.fixed_dictionaries(
    {"held_out": st.booleans(), "labels": st.lists(st.sampled_from("abc"), max_size=3, unique=True)}
) | st.just({"held_out": True})


@given(shards=st.lists(st.lists(rows, max_size=5), min_size=1, max_size=4), num_ranks=st.integers(1, 3))
def test_counts_are_those_of_all_rows_on_any_number_of_ranks(
    tmp_path_factory: pytest.TempPathFactory, shards: list[list[Any]], num_ranks: int
) -> None:
    source = source_of(tmp_path_factory.mktemp("rows"), shards)
    good = [row for shard in shards for row in shard if "labels" in row]
    num_bad = sum(map(len, shards)) - len(good)
    labels = {
        side: Counter(label for row in good if row["held_out"] is side for label in row["labels"])
        for side in (False, True)
    }
    found = run_ranks(num_ranks, lambda ranks: survey(source, observed_row, ranks, "skip"))
    for one in found:
        assert one.num_held_out == sum(row["held_out"] for row in good)
        assert one.num_train == len(good) - one.num_held_out
        assert one.train_labels == labels[False]
        assert one.held_out_labels == labels[True]
        assert one.bad_rows == ({"field 'labels': missing": num_bad} if num_bad else {})


def test_a_bad_row_on_one_rank_ends_all(tmp_path: Path) -> None:
    good = {"held_out": False, "labels": ["a"]}
    source = source_of(tmp_path, [[good], [good, {"held_out": False}]])
    outcomes: list[str] = [""] * 2

    def work(ranks: Any) -> None:
        try:
            survey(source, observed_row, ranks, "error")
        except (ValueError, RankFailed) as error:
            outcomes[ranks.index] = f"{type(error).__name__}: {error}"

    run_ranks(2, work)
    named = "train-01.jsonl, row 2: field 'labels': missing"
    assert outcomes[1].startswith(f"UserError: {named}")
    assert outcomes[0].startswith("RankFailed: rank 1 failed")
    assert named in outcomes[0]


def test_an_empty_file_is_surveyed_as_nothing(tmp_path: Path) -> None:
    assert survey(source_of(tmp_path, [[]]), observed_row, OneRank(), "error") == Survey()


def test_the_digest_is_of_all_content_at_its_place_on_any_number_of_ranks(tmp_path: Path) -> None:
    def row(text: str, label: str = "a", held_out: bool = False) -> dict[str, Any]:
        return {"held_out": held_out, "labels": [label], "text": text}

    def digest(shards: list[list[Any]], num_ranks: int = 1) -> int:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        source = source_of(folder, shards)
        every = run_ranks(num_ranks, lambda ranks: survey(source, observed_row, ranks, "error"))
        (found,) = {one.digest for one in every}
        return found

    rows = [[row("one"), row("two")], [row("one")], [row("three", held_out=True)]]
    first = digest(rows)
    assert first == digest(rows, 2) == digest(rows, 3)
    changed = [
        [[row("one"), row("twO")], rows[1], rows[2]],
        [[row("two"), row("one")], rows[1], rows[2]],
        [rows[0], rows[2], rows[1]],
        [rows[0], rows[1], [row("three")]],
        [rows[0][:1], [rows[0][1], *rows[1]], rows[2]],
        [rows[0], [row("one"), row("one")], rows[2]],
    ]
    assert len({first, *map(digest, changed)}) == 7


# The held-out share


@given(group=st.text(min_size=1) | st.integers() | st.booleans(), fraction=st.floats(0, 1, exclude_max=True))
def test_a_group_is_on_one_side_whatever_else_its_rows_say(group: Any, fraction: float) -> None:
    sides = {is_held_out({"group": group, "text": text}, "group", fraction) for text in ("a", "b", None)}
    assert len(sides) == 1


@given(group=st.text(min_size=1), smaller=st.floats(0, 1), larger=st.floats(0, 1))
def test_a_larger_share_holds_out_the_groups_of_a_smaller_one_too(group: str, smaller: float, larger: float) -> None:
    smaller, larger = sorted((smaller, larger))
    if is_held_out({"g": group}, "g", smaller):
        assert is_held_out({"g": group}, "g", larger)


@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.5, 0.9])
def test_the_share_is_what_was_asked_for(fraction: float) -> None:
    """Of 10,000 groups, within four standard deviations of a binomial."""
    n = 10_000
    held_out = sum(is_held_out({"patient": f"patient {i}"}, "patient", fraction) for i in range(n))
    assert abs(held_out - n * fraction) < 4 * math.sqrt(n * fraction * (1 - fraction))


def test_the_split_is_the_same_everywhere_and_ever() -> None:
    """Figures of another day or machine are about the same held-out rows: these, written down once."""
    held_out = [i for i in range(20) if is_held_out({"d": f"disease {i}"}, "d", 0.5)]
    assert held_out == [0, 1, 3, 4, 5, 7, 8, 9, 10, 13, 14, 16, 19]


@pytest.mark.parametrize("row", [{"text": "a"}, {"patient": None}])
def test_a_row_without_a_group_is_bad(row: dict[str, Any]) -> None:
    with pytest.raises(BadRow, match="no group to split by") as error:
        is_held_out(row, "patient", 0.1)
    assert error.value.field == "patient"
