"""A dataset split into rows to train on and held-out ones: no row in both, none lost."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.held_out import all_held_out
from hf_accum.data.source import BadRow, Row
from hf_accum.data.split import SplitData, open_split
from hf_accum.data.survey import Observed
from hf_accum.distributed.ranks import OneRank
from hf_accum.errors import UserError


def save(file: Path, texts: list[str]) -> None:
    rows = [{"text": text, "patient": text[0], "label": text[-1]} for text in texts]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def opened(path: Path, **flags: Any) -> SplitData:
    return open_split(str(path), ["text", "label"], RecipeConfig(**flags), group_column="patient")


def observe(row: Row) -> Observed:
    return Observed((row["label"],), row["text"], row["text"])


TEXTS = [f"{patient}{number} {'ab'[number % 2]}" for patient in "pqrstuvw" for number in range(4)]


def sides_of(data: SplitData, column: str = "patient") -> dict[bool, set[str]]:
    sides: dict[bool, set[str]] = {True: set(), False: set()}
    for _, row in data.source.read(0, 0):
        assert isinstance(row, dict)
        sides[data.is_held_out(row, of_eval_source=False)].add(row[column])
    return sides


def test_a_fraction_is_held_out_and_every_group_is_on_one_side(tmp_path: Path) -> None:
    """As stated before a pass; and after it: both labels have their share, here of four patients of eight."""
    save(tmp_path / "rows.jsonl", TEXTS)
    data = opened(tmp_path / "rows.jsonl", eval_fraction=0.5)
    surveyed = data.surveyed(observe, OneRank(), "error")
    for sides in (sides_of(data), sides_of(surveyed)):
        assert not sides[True] & sides[False]
        assert sides[True] | sides[False] == set("pqrstuvw")
    assert len(sides_of(surveyed)[True]) == 4
    assert (surveyed.num_train, surveyed.num_held_out) == (16, 16)
    assert surveyed.label_counts == surveyed.held_out_label_counts == {"a": 8, "b": 8}


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
    assert (
        surveyed.digest != data.with_rows(lambda s: s).surveyed(lambda r: Observed((), 0), OneRank(), "error").digest
    )


def test_several_datasets_are_each_split_by_the_same_rule_and_counted_by_themselves(tmp_path: Path) -> None:
    save(tmp_path / "a.jsonl", [text for text in TEXTS if text[0] in "pqrst"])
    save(tmp_path / "b.jsonl", [text for text in TEXTS if text[0] in "tuvw"])

    def mixed(weights: tuple[str, str], **flags: Any) -> SplitData:
        both = ",".join(f"{tmp_path}/{name}.jsonl{weight}" for name, weight in zip("ab", weights, strict=True))
        data = open_split(both, ["text", "label"], RecipeConfig(**flags), group_column="patient")
        return data.surveyed(observe, OneRank(), "error")

    data = mixed((":0.7", ":0.3"), eval_fraction=0.4)
    alone = [opened(tmp_path / f"{name}.jsonl", eval_fraction=0.4) for name in "ab"]
    sides = [sides_of(one.surveyed(observe, OneRank(), "error")) for one in alone]
    held_out = sides[0][True] | sides[1][True]
    assert all(side[True] for side in sides)
    of_each = [{text[0] for text in TEXTS if text[0] in wards} for wards in ("pqrst", "tuvw")]
    assert data.mixture is not None
    assert data.mixture.sizes == tuple(4 * len(groups - held_out) for groups in of_each)
    assert data.num_train == sum(data.mixture.sizes or ())
    assert data.num_held_out == 4 * sum(len(groups & held_out) for groups in of_each)
    for shard, groups in enumerate(of_each):
        rows = [row for _, row in data.source.read(shard, 0) if isinstance(row, dict)]
        kept = {row["patient"] for row in rows if data.is_to_train_on(row)}
        assert kept == groups - held_out  # also the patient of both datasets is on one side
    assert data.source.names == (f"{tmp_path}/a.jsonl", f"{tmp_path}/b.jsonl")
    digests = {mixed(weights).digest for weights in ((":0.7", ":0.3"), (":7", ":3"), (":0.5", ":0.5"), ("", ""))}
    assert len(digests) == 4  # a run does not go on with other shares unasked


def test_passes_over_a_mixture_have_their_own_sizes(tmp_path: Path) -> None:
    save(tmp_path / "a.jsonl", TEXTS)
    save(tmp_path / "b.jsonl", TEXTS[:12])
    both = f"{tmp_path}/a.jsonl:0.5,{tmp_path}/b.jsonl:0.5"
    unread = open_split(both, ["text", "label"], RecipeConfig(), group_column="patient")
    assert unread.num_in_passes(3) is None
    data = unread.surveyed(observe, OneRank(), "error")
    assert data.mixture is not None
    in_passes = data.num_in_passes(3)
    assert not isinstance(in_passes, int | None)
    assert list(in_passes) == list(data.mixture.pass_sizes(3))
    assert data.num_in_passes(None) == data.num_train


def test_a_dataset_of_a_mixture_of_which_all_is_held_out_is_named(tmp_path: Path) -> None:
    save(tmp_path / "a.jsonl", TEXTS)
    held_out = sides_of(opened(tmp_path / "a.jsonl", eval_fraction=0.4).surveyed(observe, OneRank(), "error"))[True]
    save(tmp_path / "b.jsonl", [text for text in TEXTS if text[0] in held_out])
    both = f"{tmp_path}/a.jsonl,{tmp_path}/b.jsonl"
    data = open_split(both, ["text", "label"], RecipeConfig(eval_fraction=0.4), group_column="patient")
    with pytest.raises(UserError, match=r"dataset '.*b.jsonl' has no usable example to train on"):
        data.surveyed(observe, OneRank(), "error")


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


def test_a_class_of_few_rows_is_on_both_sides(tmp_path: Path) -> None:
    """Of 700 rows one class has 7: a hash left one of them, or none, held out."""
    rows = [f"{number:03} {'b' if number % 100 == 0 else 'a'}" for number in range(700)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": t, "patient": t, "label": t[-1]}) + "\n" for t in rows))
    data = opened(file).surveyed(observe, OneRank(), "error")
    assert data.held_out_label_counts == {"a": 69, "b": 1}
    assert data.label_counts == {"a": 624, "b": 6}
    data = opened(file, eval_fraction=0.3).surveyed(observe, OneRank(), "error")
    assert data.held_out_label_counts == {"a": 208, "b": 2}
    assert data.notes == ["examples with each label, to train on + held out: a: 485 + 208, b: 5 + 2"]


@pytest.mark.parametrize("has_labels", [True, False])
@settings(max_examples=20)
@given(num_groups=st.integers(2, 40), fraction=st.sampled_from([0.01, 0.1, 0.5, 0.99]), start=st.integers(0, 999))
def test_of_two_groups_or_more_both_sides_have_one_which_is_said(
    tmp_path_factory: pytest.TempPathFactory, has_labels: bool, num_groups: int, fraction: float, start: int
) -> None:
    file = tmp_path_factory.mktemp("few") / "rows.jsonl"
    rows = [{"text": f"{start + i}", "patient": f"{start + i}", "label": "a"} for i in range(num_groups)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def look(row: Row) -> Observed:
        return observe(row) if has_labels else Observed((), row["text"])

    data = opened(file, eval_fraction=fraction).surveyed(look, OneRank(), "error")
    assert data.num_train
    assert data.num_held_out
    sides = sides_of(data)
    assert (len(sides[False]), len(sides[True])) == (data.num_train, data.num_held_out)
    is_far = abs(data.num_held_out / num_groups - fraction) > fraction / 2
    assert any("examples are held out, where `eval_fraction` is" in note for note in data.notes) == is_far


def test_a_file_without_the_column_of_groups_is_told_which_flag_names_it(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a", "label": "b"}\n' * 3)
    said = "has no column 'patient': it has text, label; rows are grouped by it: another `group_column`, or null"
    with pytest.raises(UserError, match=said):
        opened(file)
    with pytest.raises(UserError, match=r"has no column 'note': it has text, label$"):
        open_split(str(file), ["note"], RecipeConfig(), group_column="note")


def test_rows_that_are_one_group_are_told_with_the_column(tmp_path: Path) -> None:
    save(tmp_path / "rows.jsonl", ["p0 a", "p1 b", "p2 a"])
    with pytest.raises(UserError, match=r"column 'patient', by which the rows are split, is the same in all 3 rows"):
        opened(tmp_path / "rows.jsonl").surveyed(observe, OneRank(), "error")


def test_all_rows_are_held_out_where_none_is_trained_on(tmp_path: Path) -> None:
    save(tmp_path / "rows.jsonl", ["p0 a", "p1 b", "p2 a"])
    (tmp_path / "empty.jsonl").write_text("")
    with all_held_out():
        data = opened(tmp_path / "rows.jsonl").surveyed(observe, OneRank(), "error")
        with pytest.raises(UserError, match=r"has no usable row \(0 bad rows\)"):
            opened(tmp_path / "empty.jsonl").surveyed(observe, OneRank(), "error")
    assert (data.num_train, data.num_held_out) == (0, 3)
    assert sides_of(data)[False] == set()
    with pytest.raises(UserError, match="by which the rows are split"):
        opened(tmp_path / "rows.jsonl").surveyed(observe, OneRank(), "error")


def test_texts_on_both_sides_are_counted(tmp_path: Path) -> None:
    save(tmp_path / "train.jsonl", ["Fever  and cough a", "rash b", "rash b"])
    save(tmp_path / "validation.jsonl", ["fever and\tCOUGH a", "rash b", "rash c", "Rash b"])
    data = opened(tmp_path, eval_split="validation").surveyed(observe, OneRank(), "error")
    assert data.num_repeated == 3
    (said,) = [note for note in data.notes if "trained on too" in note]
    assert said.startswith("3 of the 4 held-out examples are trained on too")
    assert "no held-out example has the label" not in "".join(data.notes)


def test_many_labels_are_not_all_told(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [
        {"text": f"{i} {n}", "patient": f"{i} {n}", "label": f"l{i:02}"} for i in range(25) for n in range(40 - i)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (note,) = opened(file).surveyed(observe, OneRank(), "error").notes
    assert note.startswith("examples with each label, to train on + held out: l00: 36 + 4, l01: ")
    assert note.endswith(", 5 rarer (the rarest is l24: 14 + 2)")


def test_the_digest_knows_of_the_split(tmp_path: Path) -> None:
    """A checkpoint is of the rows it was trained on."""
    save(tmp_path / "rows.jsonl", TEXTS)
    digests = [
        opened(tmp_path / "rows.jsonl", eval_fraction=share).surveyed(observe, OneRank(), "error").digest
        for share in (0.25, 0.5, 0.5)
    ]
    assert digests[0] != digests[1]
    assert digests[1] == digests[2]
    for folder, (train, validation) in {"one": (TEXTS[:4], TEXTS[4:8]), "two": (TEXTS[4:8], TEXTS[:4])}.items():
        (tmp_path / folder).mkdir()
        save(tmp_path / folder / "train.jsonl", train)
        save(tmp_path / folder / "validation.jsonl", validation)
        split = opened(tmp_path / folder, eval_split="validation").surveyed(observe, OneRank(), "error")
        digests.append(split.digest)
    assert digests[3] != digests[4]


@pytest.mark.parametrize("row", [{"text": "a"}, {"patient": None}, {"patient": ["p"]}])
def test_a_row_without_a_group_is_bad(tmp_path: Path, row: dict[str, Any]) -> None:
    save(tmp_path / "rows.jsonl", TEXTS)
    with pytest.raises(BadRow, match=r"no group to split by|no single value to split by") as error:
        opened(tmp_path / "rows.jsonl").is_held_out(row, of_eval_source=False)
    assert error.value.field == "patient"
