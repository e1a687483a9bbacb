"""One pass over the rows: what is counted, and the few that are kept."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from thread_ranks import run_ranks

from hf_accum.data.source import BadRow, Row, Source, open_source
from hf_accum.data.survey import Observed, Survey, hash_of_text, num_of_both, survey
from hf_accum.distributed.ranks import OneRank, RankFailed


def observed_row(row: Row) -> Observed:
    if "labels" not in row:
        raise BadRow("labels", "missing")
    return Observed(tuple(row["labels"]), row.get("text"), row.get("text"))


def look(source: Source, ranks: Any, on_bad_row: Any = "error", sample_size: int = 3) -> Survey:
    return survey(source, observed_row, lambda row: int(row["held_out"]), ranks, on_bad_row, sample_size)


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
    found = run_ranks(num_ranks, lambda ranks: look(source, ranks, "skip"))
    for one in found:
        groups = np.asarray(one.groups)
        assert one.num_rows == len(good)
        assert groups.sum() == sum(row["held_out"] for row in good)
        assert [one.labels_of(groups == side) for side in (0, 1)] == [labels[False], labels[True]]
        assert one.bad_rows == ({"field 'labels': missing": num_bad} if num_bad else {})


def test_a_bad_row_on_one_rank_ends_all(tmp_path: Path) -> None:
    good = {"held_out": False, "labels": ["a"]}
    source = source_of(tmp_path, [[good], [good, {"held_out": False}]])
    outcomes: list[str] = [""] * 2

    def work(ranks: Any) -> None:
        try:
            look(source, ranks)
        except (ValueError, RankFailed) as error:
            outcomes[ranks.index] = f"{type(error).__name__}: {error}"

    run_ranks(2, work)
    named = "train-01.jsonl, row 2: field 'labels': missing"
    assert outcomes[1].startswith(f"UserError: {named}")
    assert outcomes[0].startswith("RankFailed: rank 1 failed")
    assert named in outcomes[0]


def test_an_empty_file_is_surveyed_as_nothing(tmp_path: Path) -> None:
    assert look(source_of(tmp_path, [[]]), OneRank()) == Survey()


def test_the_digest_is_of_all_content_at_its_place_on_any_number_of_ranks(tmp_path: Path) -> None:
    def row(text: str, label: str = "a", held_out: bool = False) -> dict[str, Any]:
        return {"held_out": held_out, "labels": [label], "text": text}

    def digest(shards: list[list[Any]], num_ranks: int = 1) -> int:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        source = source_of(folder, shards)
        every = run_ranks(num_ranks, lambda ranks: look(source, ranks))
        (found,) = {one.digest for one in every}
        return found

    rows = [[row("one"), row("two")], [row("one")], [row("three", held_out=True)]]
    first = digest(rows)
    assert first == digest(rows, 2) == digest(rows, 3)
    changed = [
        [[row("one"), row("twO")], rows[1], rows[2]],
        [[row("two"), row("one")], rows[1], rows[2]],
        [rows[0], rows[2], rows[1]],
        [rows[0][:1], [rows[0][1], *rows[1]], rows[2]],
        [rows[0], [row("one"), row("one")], rows[2]],
    ]
    assert len({first, *map(digest, changed)}) == 6


def test_a_sample_is_kept_the_same_on_any_number_of_ranks_and_the_longest(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(40)]
    texts[7] = "the longest of all"
    rows = [{"held_out": False, "labels": [], "text": text} for text in texts]
    source = source_of(tmp_path, [rows[:11], rows[11:12], rows[12:]])
    (kept,) = {
        tuple(row["text"] for row in one.sampled)
        for n in (1, 2, 3)
        for one in run_ranks(n, lambda r: look(source, r))
    }
    assert len(set(kept)) == len(kept) <= 4
    assert texts[7] in kept
    (few,) = {one.sampled for one in run_ranks(1, lambda ranks: look(source, ranks, sample_size=0))}
    assert few == ()
    every = look(source, OneRank(), sample_size=100)
    assert sorted(row["text"] for row in every.sampled) == sorted(texts)


def test_a_sample_of_rows_is_even(tmp_path: Path) -> None:
    """Of 2,000 rows 200: from each tenth of the file about 20, within five standard deviations."""
    rows = [{"held_out": False, "labels": [], "text": str(number)} for number in range(2_000)]
    found = look(source_of(tmp_path, [rows]), OneRank(), sample_size=200)
    tenths = Counter(int(row["text"]) // 200 for _, row in found.sample)
    assert len(tenths) == 10
    assert max(abs(number - 20) for number in tenths.values()) < 5 * 4.3


def test_equal_texts_are_known_whatever_their_capitals_and_spaces() -> None:
    assert hash_of_text("Fever,\n cough ") == hash_of_text("fever, COUGH")
    assert hash_of_text("fever") != hash_of_text("fevers")
    assert hash_of_text(b"Fever") != hash_of_text(b"fever")
    train, held_out = (np.array([*map(hash_of_text, texts)]) for texts in (["a", "b", "b"], ["b", "B", "c"]))
    assert num_of_both(train, held_out) == 2
