"""The pooling that a model's files tell, in the layout of sentence-transformers."""

import json
from pathlib import Path
from typing import Any

import pytest

from hf_accum.config.trust import Trust
from hf_accum.models.pooling import own_pooling

MODES = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


def save(folder: Path, said: Any, *more: str) -> str:
    kinds = {"": "Transformer", "1_Pooling": "Pooling"} | {
        f"{place}_{kind}": kind for place, kind in enumerate(more, 2)
    }
    layers = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds.items())
    ]
    (folder / "1_Pooling").mkdir()
    (folder / "modules.json").write_text(json.dumps(layers))
    (folder / "1_Pooling" / "config.json").write_text(said if isinstance(said, str) else json.dumps(said))
    return str(folder)


def modes(*on: str) -> dict[str, Any]:
    return {"word_embedding_dimension": 384, "include_prompt": True} | {
        f"pooling_mode_{mode}": mode in on for mode in MODES
    }


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (modes("mean_tokens"), "mean"),
        (modes("cls_token"), "cls"),
        (modes("lasttoken"), "last"),
        ({"embedding_dimension": 384, "pooling_mode": "cls"}, "cls"),
    ],
)
def test_a_model_is_pooled_as_it_was_made(said: Any, expected: str, tmp_path: Path) -> None:
    assert own_pooling(save(tmp_path, said, "Normalize"), Trust()) == expected


@pytest.mark.parametrize(
    ("said", "more", "message"),
    [
        (modes("max_tokens"), (), "the pooling pooling_mode_max_tokens, and here there are mean, cls and last"),
        (modes("cls_token", "mean_tokens"), (), "pooling_mode_cls_token and pooling_mode_mean_tokens"),
        (modes(), (), "of nothing"),
        (modes("mean_tokens"), ("Dense",), r"layers that this recipe does not know \(Dense\): `pooling mean`"),
        ("{", (), "its 1_Pooling/config.json cannot be read"),
    ],
)
def test_what_this_recipe_has_not_is_said(said: Any, more: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        own_pooling(save(tmp_path, said, *more), Trust())


def test_a_model_without_such_files_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert own_pooling(str(tmp_path), Trust()) is None
