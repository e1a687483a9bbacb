"""Texts of tagged words: cut so that each word counts once, read as they are, refused by name."""

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_tokenizer

from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.formats.rows import BadRow
from hf_accum.data.source import Source, in_parts
from hf_accum.distributed.ranks import OneRank
from hf_accum.tasks.token_classification.data import Part, TaggedTexts, cut_text, open_tagged_texts, part_of
from hf_accum.tasks.token_classification.files import Columns


@settings(max_examples=300, deadline=None)
@given(
    num_tokens=st.lists(st.integers(0, 9), min_size=1, max_size=60),
    most=st.integers(1, 20),
    overlap=st.integers(0, 19),
)
def test_each_word_counts_once_and_no_part_is_too_long(num_tokens: list[int], most: int, overlap: int) -> None:
    parts = cut_text(num_tokens, most, overlap)
    assert [word for _, _, first, last in parts for word in range(first, last)] == list(range(len(num_tokens)))
    for start, end, first, last in parts:
        assert start <= first <= last <= end
        assert sum(num_tokens[start:end]) <= most or end == start + 1
    for (start, end, _, last), (following, _, _, _) in itertools.pairwise(parts):
        assert start < following <= end
        assert sum(num_tokens[following:end]) <= overlap
        # The shared words are halved: neither side has more than one more.
        assert abs((last - following) - (end - last)) <= 1
    assert (len(parts) == 1) == (sum(num_tokens) <= most or len(num_tokens) == 1)


def test_a_text_that_fits_is_one_part() -> None:
    assert cut_text([3, 3, 3], 9, 4) == [(0, 3, 0, 3)]
    assert cut_text([3, 3, 3], 6, 3) == [(0, 2, 0, 2), (1, 3, 2, 3)]


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_parts_are_read_from_any_place_on(sizes: list[int]) -> None:
    """As if all of them had been read, and those before left out; no row before that of the place is asked for."""
    asked: list[int] = []

    def read(_: int, start: int) -> Any:
        asked.append(start)
        for number in range(start, len(sizes)):
            yield number, BadRow("x", "bad") if sizes[number] == 0 else {"size": sizes[number]}

    def parts_of(row: Any) -> list[Any]:
        return [{"part": index} for index in range(row["size"])]

    source = in_parts(Source(("rows",), read, {}), parts_of, most=5)
    everything = [(number, str(row)) for number, row in source.read(0, 0)]
    assert len({number for number, _ in everything}) == len(everything) == sum(size or 1 for size in sizes)
    for start in range(5 * len(sizes)):
        rest = [(number, str(row)) for number, row in source.read(0, start)]
        assert [item for item in rest if item[0] >= start] == [item for item in everything if item[0] >= start]
        assert asked[-1] == start // 5


def test_a_row_of_too_many_parts_is_a_bad_one() -> None:
    source = in_parts(Source(("rows",), lambda _, start: iter([(0, {})]), {}), lambda row: [row] * 6, most=5)
    ((number, bad),) = source.read(0, 0)
    assert number == 0
    assert "cut into 6 parts: it has to be at most 5" in str(bad)


COLUMNS = Columns("tokens", "tags", "text", None)


def opened(folder: Path, rows: list[dict[str, Any]], max_length: int = 8, **flags: Any) -> TaggedTexts:
    file = folder / "texts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    how: dict[str, Any] = {"columns": COLUMNS, "group_column": None, "types": ()} | flags
    config = RecipeConfig(max_length=max_length, eval_fraction=0.4)
    return open_tagged_texts(str(file), OneRank(), config, make_tokenizer(), overlap=2, **how)


def rows_of(number: int, length: int) -> list[dict[str, Any]]:
    return [
        {
            "tokens": [f"w{(index + place) % 40}" for place in range(length)],
            "tags": ["O", "B-b", "I-b", "B-a"] * length,
        }
        | {"tags": (["O", "B-b", "I-b", "B-a"] * length)[:length]}
        for index in range(number)
    ]


def test_the_survey_counts_parts_and_finds_the_types(tmp_path: Path) -> None:
    """Of 20 words 6 fit beside [CLS] and [SEP]; each further part brings 4."""
    data = opened(tmp_path, rows_of(30, 20))
    assert data.types == ("a", "b")
    assert (data.num_train or 0) + (data.num_held_out or 0) == 30 * 5
    assert (data.num_train or 0) % 5 == 0  # no text is on both sides
    assert opened(tmp_path, rows_of(30, 20), types=("b", "a")).types == ("b", "a")


def test_types_without_a_text_are_said(tmp_path: Path) -> None:
    data = opened(tmp_path, rows_of(30, 20), types=("b", "a", "c"))
    assert data.notes[-1] == "no text to train on has an entity of type c"


def test_a_length_that_leaves_no_place_for_words_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`max_length` 2: has to leave place for words"):
        opened(tmp_path, rows_of(3, 3), max_length=2)


def test_data_without_entities_is_refused(tmp_path: Path) -> None:
    rows = [{"tokens": [f"w{index}"], "tags": ["O"]} for index in range(30)]
    with pytest.raises(ValueError, match="has 0 types of entities"):
        opened(tmp_path, rows)


def test_the_row_of_a_bad_part_is_named(tmp_path: Path) -> None:
    rows = rows_of(5, 20)
    rows[3]["tags"] = ["O"]
    with pytest.raises(ValueError, match=r"texts\.jsonl, row 4: field 'tags': 1 tags for 20 words"):
        opened(tmp_path, rows)


# Formats: the same 20 texts in each

TEXT = "w{} w1 w2 w3, w4"
SPANS = [(-9, -7, "b"), (-9, -7, "a"), (-12, -7, "b"), (-2, 0, "a")]
"""From the end: w2 twice, which w1 w2 has in it, and w4."""


def texts() -> list[str]:
    return [TEXT.format(number) for number in range(5, 25)]


def spans_in(text: str) -> list[tuple[int, int, str]]:
    return [(len(text) + start, len(text) + end, label) for start, end, label in SPANS]


def as_json(folder: Path, row_of: Any) -> Path:
    file = folder / "notes.jsonl"
    file.write_text("".join(json.dumps(row_of(text, spans_in(text))) + "\n" for text in texts()))
    return file


def as_csv(folder: Path) -> Path:
    file = folder / "notes.csv"
    with file.open("w", newline="") as lines:
        rows = csv.writer(lines)
        rows.writerows([["text", "entities"], *([text, json.dumps(spans_in(text))] for text in texts())])
    return file


def as_parquet(folder: Path) -> Path:
    file = folder / "notes.parquet"
    rows = [
        {"text": text, "spans": [{"start": s, "end": e, "label": name} for s, e, name in spans_in(text)], "more": 1}
        for text in texts()
    ]
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


def as_brat(folder: Path) -> Path:
    for number, text in enumerate(texts()):
        (folder / f"n{number:02}.txt").write_text(text)
        lines = [f"T{i}\t{name} {s} {e}\t{text[s:e]}\n" for i, (s, e, name) in enumerate(spans_in(text))]
        (folder / f"n{number:02}.ann").write_text("".join(lines))
    return folder


BY_CHARACTERS: dict[str, Any] = {
    "jsonl": lambda folder: as_json(
        folder,
        lambda text, spans: {
            "text": text,
            "entities": [{"start": s, "end": e, "label": name, "text": text[s:e]} for s, e, name in spans],
        },
    ),
    "doccano": lambda folder: as_json(folder, lambda text, spans: {"text": text, "label": spans}),
    "prodigy": lambda folder: as_json(
        folder,
        lambda text, spans: {
            "text": text,
            "tokens": [{"text": "w1", "id": 0}],
            "spans": [{"start": s, "end": e, "label": name, "token_start": 0} for s, e, name in spans],
        },
    ),
    "csv": as_csv,
    "parquet": as_parquet,
    "brat": as_brat,
}


def open_(dataset: Path, max_length: int = 6, on_bad_row: Any = "error", **flags: Any) -> TaggedTexts:
    how: dict[str, Any] = {"columns": COLUMNS, "group_column": None, "types": ()} | flags
    config = RecipeConfig(max_length=max_length, eval_fraction=0.4, on_bad_row=on_bad_row)
    return open_tagged_texts(str(dataset), OneRank(), config, make_tokenizer(), overlap=2, **how)


def parts_in(data: TaggedTexts) -> list[Part]:
    source = data.source
    return [part_of(row) for shard in range(source.num_shards) for _, row in source.read(shard, 0)]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", BY_CHARACTERS)
def test_texts_with_entities_by_characters(tmp_path: Path, name: str) -> None:
    """Of the overlapping ones the longest is kept. In parts of 4 tokens, which share 2."""
    data = open_(BY_CHARACTERS[name](tmp_path))
    assert data.types == ("a", "b")
    assert data.notes[0].startswith("80 entities, by the characters of texts (columns 'text' and '")
    assert data.notes[1].startswith("40 entities are left out: of those that overlap the longest is kept")
    parts = parts_in(data)
    assert len(parts) == 40 == (data.num_train or 0) + (data.num_held_out or 0)
    for text, first, second in zip(texts(), parts[::2], parts[1::2], strict=True):
        assert first.text + second.text == text
        assert first.words == (text.split()[0], "w1", "w2", "w3")
        assert second.words == ("w2", "w3", ",", "w4")
        assert first.layers == (("O", "B-b", "I-b", "O"),)
        counted = [*first.layers[0][first.first : first.last], *second.layers[0][second.first : second.last]]
        assert counted == ["O", "B-b", "I-b", "O", "O", "B-a"]


@pytest.mark.parametrize("name", ["jsonl", "brat"])
def test_nested_entities_of_different_types_have_layers(tmp_path: Path, name: str) -> None:
    """Whether the types are known or found, in their order."""
    dataset = BY_CHARACTERS[name](tmp_path)
    found, given = open_(dataset, nested="each_label"), open_(dataset, nested="each_label", types=("b", "a"))
    assert (found.types, given.types) == (("a", "b"), ("b", "a"))
    for data in (found, given):
        assert "20 entities are left out: of those of one type that overlap the longest is kept" in data.notes[1]
        layers = dict(zip(data.types, parts_in(data)[0].layers, strict=True))
        assert layers == {"a": ("O", "O", "B-a", "O"), "b": ("O", "B-b", "I-b", "O")}
    assert (
        found.digest == open_(dataset, nested="each_label", types=("a", "b")).digest
    )  # a run that goes on is the same


def test_texts_of_some_types_have_a_layer_of_each_also_in_the_sample(tmp_path: Path) -> None:
    """As where the types are known before: the sample, of which lengths are told, is of the pass that found them."""
    tags = (["O", "O"], ["B-b", "I-b"], ["O", "B-a"], ["B-c", "B-a"], ["B-b", "O"])
    rows = [{"tokens": [f"w{n}", "w1"], "tags": list(tags[n % 5])} for n in range(30)]
    found, given = (opened(tmp_path, rows, nested="each_label", types=types) for types in ((), ("a", "b", "c")))
    assert found.types == given.types
    assert len(found.sample) == 30
    assert [part_of(row) for row in found.sample] == [part_of(row) for row in given.sample]


def test_a_type_whose_entities_all_lie_in_longer_ones(tmp_path: Path) -> None:
    """Is one of the types, since the rows have it; that no text is left with it is said."""
    file = tmp_path / "notes.jsonl"
    inside = '{"text": "w%d w1 w2 w3", "entities": [[4, 9, "long"], [4, 6, "inside"]]}'
    file.write_text("\n".join(inside % number for number in range(10, 30)))
    data = open_(file, max_length=20)
    assert data.types == ("inside", "long")
    assert {part.layers for part in parts_in(data)} == {(("O", "B-long", "I-long", "O"),)}
    assert any("20 entities are left out" in note for note in data.notes)
    assert any("no text to train on has an entity of type inside" in note for note in data.notes)


def test_twenty_texts_of_columns(tmp_path: Path) -> None:
    lines = ["w{}\tO", "w1\tB-b", "w2\tL-b", ",\tO", "w4\tU-a", ""]
    file = tmp_path / "notes.conll"
    file.write_text("\n".join(line.format(number) for number in range(5, 25) for line in lines))
    data = open_(file)
    assert data.notes[0] == "40 entities, by tags in the scheme BILOU (columns 'tokens' and 'tags')"
    assert parts_in(data)[0].layers == (("O", "B-b", "I-b", "O"),)
    file.write_text(file.read_text().replace("w9\tO", "w9\tX-b"))
    with pytest.raises(ValueError, match=r"notes\.conll, row 5: line 25: 'X-b' is no tag"):
        open_(file)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("jsonl", r"notes\.jsonl, row 4: field 'entities': entity 2: says 'w1', and characters 6 to 8 are 'w2'"),
        ("brat", r"n03\.txt, row 1: field 'entities': n03\.ann, line 2: says 'w1', and characters 6 to 8 are 'w2'"),
    ],
)
def test_a_broken_entity_is_named_by_file_and_line(tmp_path: Path, name: str, said: str) -> None:
    dataset = BY_CHARACTERS[name](tmp_path)
    file = dataset / "n03.ann" if name == "brat" else dataset
    lines = file.read_text().split("\n")
    if name == "brat":
        lines[1] = lines[1].replace("\tw2", "\tw1")
    else:
        row = json.loads(lines[3])
        row["entities"][1]["text"] = "w1"
        lines[3] = json.dumps(row)
    file.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=said):
        open_(dataset)
    data = open_(dataset, on_bad_row="skip")
    assert sum(data.bad_rows.values()) == 1
    assert data.notes[0].startswith("76 entities")


def test_tags_that_are_numbers_have_the_names_that_are_given(tmp_path: Path) -> None:
    rows = [{"tokens": [f"w{number}", "w1"], "tags": [0, 1]} for number in range(20)]
    data = opened(tmp_path, rows, names=("O", "S-sign"))
    assert data.types == ("sign",)
    assert "by tags in the scheme IOBES" in data.notes[0]
    with pytest.raises(ValueError, match=r"0 is no tag.*of numbers, `labels` has to name the tags"):
        opened(tmp_path, rows)
    with pytest.raises(
        ValueError, match=r"1 is no tag.*of numbers, of which those from 0 to 0 have a name so far, `la"
    ):
        opened(tmp_path, rows, names=("O",))
    assert opened(tmp_path, rows, earlier_names=("O", "S-sign")).types == ("sign",)
    assert opened(tmp_path, rows, names=("O", "B-drug"), earlier_names=("O", "S-sign")).types == ("drug",)


@pytest.mark.parametrize(("classes", "types"), [(["O", "B-drug"], ("drug",)), (["0", "1"], ("sign",))])
def test_classes_of_a_column_that_are_tags_go_before_names(
    tmp_path: Path, classes: list[str], types: tuple[str, ...]
) -> None:
    rows = [{"tokens": [f"w{number}", "w1"], "tags": [0, 1]} for number in range(20)]
    typed = Features({"tokens": List(Value("string")), "tags": List(ClassLabel(names=classes))})
    Dataset.from_list(rows, features=typed).to_parquet(tmp_path / "rows.parquet")
    assert open_(tmp_path / "rows.parquet", names=("O", "B-sign")).types == types


def test_other_columns_are_refused_by_their_names(tmp_path: Path) -> None:
    file = tmp_path / "notes.jsonl"
    file.write_text('{"note": "w1", "spans": []}\n')
    with pytest.raises(ValueError, match="its rows have the columns note, spans: there have to be one of words and"):
        open_(file)
    assert open_(
        as_json(tmp_path, lambda text, spans: {"note": text, "marks": spans}),
        columns=Columns("tokens", "tags", "note", "marks"),
    ).types == ("a", "b")
