"""Rows out of JSON, and predictions into it. What is malformed is refused in tests/recipes/test_serve_command.py."""

import base64
import json

import numpy as np
import pytest
from PIL import Image

from hf_accum.cli.serving.rows import Refused, answer_of, checked, of_request, rows_of
from hf_accum.data.formats.rows import BadRow
from hf_accum.tasks.prediction import Told


@pytest.mark.parametrize(
    ("value", "rows"),
    [
        ({"rows": [{"text": "a"}, 3]}, [{"text": "a"}, 3]),
        ({"rows": []}, []),
        ({"text": "rows"}, [{"text": "rows"}]),
        ({}, [{}]),
    ],
)
def test_one_row_or_a_list_of_them(value: object, rows: list[object]) -> None:
    assert rows_of(json.dumps(value).encode(), 2) == rows
    assert rows_of(b"\xef\xbb\xbf" + json.dumps(value).encode(), 2) == rows


def test_a_column_beside_rows_is_not_taken_for_one_of_a_row() -> None:
    with pytest.raises(Refused, match="nothing else") as refused:
        rows_of(b'{"rows": [], "text": "a"}', 2)
    assert refused.value.status == 400
    with pytest.raises(Refused, match="3 rows, more than the 2") as refused:
        rows_of(b'{"rows": [1, 2, 3]}', 2)
    assert refused.value.status == 413


def test_an_image_is_its_bytes_in_base64_and_never_a_path() -> None:
    assert checked({"image": base64.b64encode(b"abc").decode(), "n": 1}, "image") == {"image": b"abc", "n": 1}
    assert checked({"text": "/etc/hosts"}, None) == {"text": "/etc/hosts"}
    assert checked({"text": "a"}, "image") == {"text": "a"}
    for value in ("/etc/hosts.png", {"path": "a.png"}, {"bytes": "YWJj"}, 3, None, "YWJ", "äöü"):
        with pytest.raises(BadRow, match="base64"):
            checked({"image": value}, "image")


def test_columns_are_in_order_and_all_of_them_is_json() -> None:
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    told = [
        (Told({"score": np.float64(0.5), "vector": np.ones(2), "none": float("nan")}, {"mask": image}), 0),
        (Told({"vector": [1]}, remarks=("was long",)), 1_234),
    ]
    answer = json.loads(json.dumps(answer_of(told, ("vector", "mask", "score", "none"), "tokens"), allow_nan=False))
    first, second = answer["rows"]
    assert list(first) == ["vector", "mask", "score", "none"]
    assert first["vector"] == [1.0, 1.0]
    assert first["none"] is None
    assert base64.b64decode(first["mask"]).startswith(b"\x89PNG")
    assert second == {"vector": [1]}
    assert answer["notes"] == ["rows[1]: 1,234 tokens were cut off and not read", "rows[1]: was long"]
    assert "notes" not in answer_of(told[:1], ("vector",), "tokens")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("has 9 pixels, more than 4 (`max_length`): a bomb?", "has 9 pixels, more than 4: a bomb?"),
        ("6 tokens (`max_new_tokens`)", "6 tokens"),
        ("of the row (`diagnosis`), which `max_length` cuts", "of the row (`diagnosis`), which `max_length` cuts"),
    ],
)
def test_flags_in_brackets_are_for_who_started_the_server(said: str, told: str) -> None:
    assert of_request(said) == told
