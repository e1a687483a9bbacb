"""Lists that were written out as text: as Python, JSON and numpy write them, and no other text."""

import json
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_accum.tasks.label_lists import binary, is_multi_hot, is_of_numbers, written_list

texts = st.text(max_size=8)


@given(st.lists(texts | st.integers(-99, 99) | st.booleans() | st.sampled_from([0.0, 1.0, 0.5]), max_size=6))
def test_what_python_writes_is_read_back(items: list[Any]) -> None:
    for text in (repr(items), f" {items!r}\n", repr(tuple(items)) if items else "[]"):
        assert written_list(text) == items
        assert list(map(type, written_list(text) or [])) == list(map(type, items))


@given(
    st.lists(
        st.sampled_from(["a", "it's", 'say "a"', "a, b", "ü 💊", "\\n\\"]) | st.integers() | st.booleans(), max_size=6
    )
)
def test_what_json_writes_is_read_back(items: list[Any]) -> None:
    for ensure_ascii in (True, False):
        assert written_list(json.dumps(items, ensure_ascii=ensure_ascii)) == items


@pytest.mark.parametrize("array", [[0, 1, 0], [0.0, 1.0], [True, False], ["a", "b c"], list(range(60))])
def test_what_numpy_prints_is_read_back(array: list[Any]) -> None:
    assert written_list(str(np.array(array))) == array


@pytest.mark.parametrize(
    "text",
    [
        *("a", "", "[a, b]", "[unknown]", "(benign)", "(1)", "()", "[1, 2", "1, 2]", "['a' + 'b']", "[[1], [2]]"),
        *("[1,,2]", "[None]", "[nan]", "['a]", "['a'b]", "[1a]", "{'a': 1}", str(np.zeros(2_000, dtype=int))),
    ],
)
def test_other_texts_are_no_lists(text: str) -> None:
    assert written_list(text) is None


@pytest.mark.parametrize("part", ["1", " ", "'", "a ", "1 ", "\\", "1,", "'a' "])
def test_a_long_text_that_is_no_list_is_soon_known(part: str) -> None:
    started = time.process_time()
    assert written_list("[" + part * 100_000 + "x]") is None
    assert time.process_time() - started < 1


def test_zeros_and_ones_in_any_form() -> None:
    assert [binary(v) for v in (0, 1, True, 0.0, "1", " No ", "TRUE", "1.0")] == [0, 1, 1, 0, 1, 0, 1, 1]
    assert [binary(v) for v in (2, -1, 0.5, "", "maybe", None, [1], "2")] == [None] * 8
    assert is_multi_hot([0, 1.0, True])
    assert not is_multi_hot([0, 2])
    assert not is_multi_hot([])
    assert not is_multi_hot(["0", "1"])
    assert is_of_numbers([2, 0.5])
    assert not is_of_numbers([2, "3"])
