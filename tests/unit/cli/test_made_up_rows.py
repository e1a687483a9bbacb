"""Rows that are made up in the columns of a recipe's flags."""

import json
from pathlib import Path
from typing import Any

import pytest
from recipe_configs import config_class_of

from hf_accum.cli.made_up_rows import with_made_up_rows
from hf_accum.config.recipe import RecipeConfig
from hf_accum.errors import UserError


@pytest.mark.parametrize(
    ("recipe", "flags", "columns"),
    [
        ("clinical_classification", {"text_column": "note"}, {"note", "label"}),
        (
            "clinical_classification",
            {"problem": "regression", "group_column": "patient"},
            {"text", "label", "patient"},
        ),
        (
            "clinical_classification",
            {"text_template": "{age}: {note}", "text_pair_column": "question"},
            {"age", "note", "question", "label"},
        ),
        ("clinical_ner", {"tags_column": "ner"}, {"tokens", "ner"}),
        ("medical_mlm", {}, {"text"}),
        ("medical_lm", {}, {"text"}),
        ("medical_lm", {"prompt_column": "q", "response_column": "a"}, {"q", "a"}),
        ("medical_lm", {"messages_column": "talk"}, {"talk"}),
        ("term_retrieval", {}, {"term", "definition"}),
        ("driving_images", {}, {"file_name", "label"}),
        ("driving_images", {"task": "segmentation"}, {"file_name", "mask_file_name"}),
    ],
)
def test_each_row_has_what_the_columns_ask_for(recipe: str, flags: dict[str, Any], columns: set[str]) -> None:
    with with_made_up_rows(config_class_of(recipe)(**flags)) as config:
        assert config.dataset is not None
        (file,) = Path(config.dataset).glob("*.jsonl")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        assert len(rows) == 60
        assert {frozenset(row) for row in rows} == {frozenset(columns)}
        assert all((Path(config.dataset) / row["file_name"]).is_file() for row in rows if "file_name" in row)
    assert not Path(config.dataset).exists()


def test_other_splits_are_those_of_the_data_that_is_not_read() -> None:
    given = RecipeConfig(train_split="test", eval_split="validation", dataset_config="of_the_hub")
    config = config_class_of("medical_mlm")(**vars(given))
    with with_made_up_rows(config) as made_up:
        assert (made_up.train_split, made_up.eval_split, made_up.dataset_config) == ("train", None, None)


def test_a_recipe_of_other_columns_is_refused() -> None:
    with pytest.raises(UserError, match="whose columns are not known"), with_made_up_rows(RecipeConfig()):
        pass
