"""Which datasets a flag names, and their weights."""

from fractions import Fraction
from pathlib import Path

import pytest

from hf_accum.config.datasets import Part, parts_of, whole_weights
from hf_accum.config.recipe import RecipeConfig
from hf_accum.errors import UserError


@pytest.mark.parametrize(
    "name", ["notes.csv", "embedded:icd", "hf://datasets/a/b", r"C:\data\notes.csv", "user/name", "user/v2:main"]
)
def test_one_dataset_is_its_name_whatever_colons_are_in_it(name: str) -> None:
    assert parts_of(name) == (Part(name, name),)
    assert parts_of(f"{name}:0.7,other:0.30") == (
        Part(name, name, Fraction(7, 10)),
        Part("other", "other", Fraction(3, 10)),
    )
    assert parts_of(f"{name}, other") == (Part(name, name), Part("other", "other"))


def test_a_file_that_is_there_is_one_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a,b.csv", "notes:2"):
        Path(name).touch()
        assert parts_of(name) == (Part(name, name),)


def test_what_was_read_already_stays() -> None:
    parts = parts_of("a:1,b:2")
    assert parts_of(parts) is parts


def test_weights_as_whole_numbers() -> None:
    assert whole_weights([Fraction("0.7"), Fraction("0.3")]) == whole_weights([Fraction(14), 6]) == (7, 3)
    assert whole_weights([Fraction("0.25"), Fraction(1, 6), 1]) == (3, 2, 12)


@pytest.mark.parametrize(
    ("dataset", "told"),
    [
        ("a:0,b:1", "weights that are finite numbers above 0: a has 0"),
        ("a:1,b:-0.5", "b has -0.5"),
        ("a:nan,b:1", "a has nan"),
        ("a:1,b:inf", "b has inf"),
        ("a:0.7,b", "b has no weight"),
        ("a,b,a", "a is named twice"),
        ("a:1,b:2,a:3", "a is named twice"),
        ("a,,b", "none of them empty"),
        (":1,b:2", "none of them empty"),
        ("a:0.7", "without a weight, or of several"),
        ("a:1e-300,b:1", "of rounder weights"),
        ("a:0.1234567,b:1", "of rounder weights"),
    ],
)
def test_what_is_no_mixture_is_refused_with_the_flags(dataset: str, told: str) -> None:
    with pytest.raises(UserError, match=told) as error:
        RecipeConfig(dataset=dataset)
    assert f"`dataset` {dataset}: " in str(error.value)


def test_one_place_by_two_names_is_named_twice(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match=r"b/../a.csv is named twice"):
        parts_of(f"{tmp_path}/a.csv,{tmp_path}/b/../a.csv")


def test_ranks_that_read_their_own_files_cannot_keep_shares() -> None:
    with pytest.raises(UserError, match="`stream_split` shards: has to be examples where datasets have weights"):
        RecipeConfig(dataset="a:1,b:2", stream_split="shards")
    assert RecipeConfig(dataset="a,b", stream_split="shards").dataset == "a,b"
