"""The datasets that a recipe brings: by name, and with the flags that belong to them."""

from dataclasses import dataclass
from fractions import Fraction

import pytest

from hf_accum.config.datasets import Part
from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.embedded import Embedded, with_dataset
from hf_accum.distributed.ranks import OneRank
from hf_accum.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Config(RecipeConfig):
    label_column: str | None = None


ALONE = OneRank()
OF_FIRST = {"label_column": "chapter", "group_column": "category", "eval_split": "test"}
EMBEDDED = {
    "first": Embedded(lambda: "folder-1", OF_FIRST),
    "second": Embedded(lambda: "folder-2", {"group_column": "disease"}),
}


def test_the_first_is_the_default_with_its_flags() -> None:
    config, folder = with_dataset(Config(), ALONE, EMBEDDED)
    assert (folder, config.dataset) == ("folder-1", "embedded:first")
    assert (config.label_column, config.group_column, config.eval_split) == ("chapter", "category", "test")


def test_flags_that_are_given_stay() -> None:
    given = Config(dataset="embedded:second", group_column="id", label_column="mode")
    config, folder = with_dataset(given, ALONE, EMBEDDED)
    assert folder == "folder-2"
    assert (config.label_column, config.group_column, config.eval_split) == ("mode", "id", None)


def test_ones_own_is_left_alone() -> None:
    assert with_dataset(Config(dataset="notes.csv"), ALONE, EMBEDDED) == (Config(dataset="notes.csv"), "notes.csv")


def test_of_several_each_is_found_and_the_flags_are_those_of_the_embedded() -> None:
    config, parts = with_dataset(Config(dataset="embedded:first:0.75,notes.csv:0.25"), ALONE, EMBEDDED)
    first, own = parts
    assert first == Part("embedded:first", "folder-1", Fraction(3, 4))
    assert own == Part("notes.csv", "notes.csv", Fraction(1, 4))
    assert (config.label_column, config.group_column) == ("chapter", "category")
    assert config.eval_split is None  # the other one has none: a part of each is held out
    own_ones = Config(dataset="a.csv,b.csv")
    assert with_dataset(own_ones, ALONE, EMBEDDED) == (own_ones, "a.csv,b.csv")


def test_embedded_ones_that_want_different_flags_have_to_be_given_them() -> None:
    both = "embedded:first,embedded:second"
    with pytest.raises(
        UserError, match=r"`group_column`: has to be given, since .*category in embedded:first, disease"
    ):
        with_dataset(Config(dataset=both), ALONE, EMBEDDED)
    config, _ = with_dataset(Config(dataset=both, group_column="id"), ALONE, EMBEDDED)
    assert (config.label_column, config.group_column, config.eval_split) == ("chapter", "id", None)
    alike = EMBEDDED | {"third": Embedded(lambda: "folder-3", OF_FIRST)}
    config, _ = with_dataset(Config(dataset="embedded:first:1,embedded:third:1"), ALONE, alike)
    assert config.eval_split == "test"


def test_another_name_is_refused() -> None:
    with pytest.raises(UserError, match="embedded:third: has to be one of embedded:first, embedded:second"):
        with_dataset(Config(dataset="embedded:third"), ALONE, EMBEDDED)
