"""How rows are read where no flag says it: by the names of their columns."""

import json
from pathlib import Path

import pytest

from hf_accum.config.recipe import RecipeConfig
from hf_accum.tasks.causal_lm.columns import columns_among, find_columns, find_tools

ALPACA = {"prompt_column": "instruction", "response_column": "output", "input_column": "input"}


@pytest.mark.parametrize(
    ("names", "flags"),
    [
        (["id", "conversations"], {"messages_column": "conversations"}),
        (["messages", "id"], {"messages_column": "messages"}),
        (["messages", "tools"], {"messages_column": "messages", "tools_column": "tools"}),
        (["output", "input", "instruction"], ALPACA),
        (["instruction", "output"], {"prompt_column": "instruction", "response_column": "output"}),
        (["prompt", "completion", "input"], {"prompt_column": "prompt", "response_column": "completion"}),
        (["instruction", "input", "output", "text"], {}),
        (["instruction", "label"], {}),
        ([], {}),
    ],
)
def test_columns_are_found_by_the_names_of_data_sets(names: list[str], flags: dict[str, str]) -> None:
    assert columns_among(names) == flags


def test_the_first_row_that_can_be_read_says_which_there_are(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("{broken\n" + json.dumps({"instruction": "a", "input": "", "output": "b"}) + "\n")
    assert find_columns(str(file), RecipeConfig()) == ALPACA
    assert find_tools(str(file), RecipeConfig()) is None
    file.write_text(json.dumps({"talk": [], "tools": []}) + "\n")
    assert find_tools(str(file), RecipeConfig()) == "tools"
    file.write_text("")
    assert find_columns(str(file), RecipeConfig()) == {}
