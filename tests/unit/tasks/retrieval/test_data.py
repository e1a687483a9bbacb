"""A dataset of pairs of texts: read once where its size is needed, its texts checked then."""

import json
from pathlib import Path
from typing import Any

import pytest

from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.split import SplitData
from hf_accum.distributed.ranks import OneRank
from hf_accum.errors import UserError
from hf_accum.tasks.retrieval.data import open_text_pairs

ROWS: list[dict[str, Any]] = [{"term": f"t{number}", "definition": f"d{number // 2}"} for number in range(40)]


def opened(file: Path, rows: list[dict[str, Any]], **flags: Any) -> SplitData:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = RecipeConfig(eval_fraction=0.5, **flags)
    return open_text_pairs(str(file), OneRank(), config, ("term", "definition"), group_column="definition")


def test_pairs_of_one_document_are_on_one_side_and_all_are_counted(tmp_path: Path) -> None:
    data = opened(tmp_path / "pairs.jsonl", ROWS)
    held_out = [data.is_held_out(row, False) for row in ROWS]
    assert held_out[::2] == held_out[1::2]
    assert (data.num_held_out, data.num_train) == (sum(held_out), 40 - sum(held_out))


def test_the_digest_is_of_both_texts(tmp_path: Path) -> None:
    digests = {
        opened(tmp_path / "pairs.jsonl", [ROWS[0] | change, *ROWS[1:]]).digest
        for change in ({}, {"term": "another"}, {"definition": "another"}, {"note": "of no account"})
    }
    assert len(digests) == 3


def test_a_bad_row_is_found_by_the_pass_and_without_one_nothing_is_read(tmp_path: Path) -> None:
    rows = [*ROWS, {"term": "t", "definition": None}]
    with pytest.raises(UserError, match="row 41: field 'definition'"):
        opened(tmp_path / "pairs.jsonl", rows)
    assert opened(tmp_path / "pairs.jsonl", rows, num_epochs=None, max_steps=1).num_train is None
