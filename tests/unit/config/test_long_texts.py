"""The flags of long texts: what they ask for, and how they go together."""

import pytest
from flags import Refused, check_refused

from hf_accum.config.long_texts import TextWindows, windows_of
from recipes.clinical_classification import ClinicalClassificationConfig
from recipes.clinical_ner import ClinicalNerConfig


def test_texts_are_truncated_by_default() -> None:
    assert windows_of(ClinicalClassificationConfig()) is None


def test_windows_are_those_of_the_flags() -> None:
    config = ClinicalClassificationConfig(
        long_texts="windows", max_length=256, window_overlap=32, window_pooling="max", max_windows=9
    )
    assert windows_of(config) == TextWindows(256, 32, 9, "max")


@pytest.mark.parametrize(("max_length", "shared"), [(512, 64), (256, 64), (128, 32), (64, 16), (2, 0)])
def test_by_default_windows_and_parts_share_a_quarter_of_their_length_and_at_most_64(
    max_length: int, shared: int
) -> None:
    config = ClinicalClassificationConfig(long_texts="windows", max_length=max_length)
    assert windows_of(config) == TextWindows(max_length, shared, 64, "mean")
    assert (
        config.window_overlap == ClinicalNerConfig(max_length=max_length).overlap == shared
    )  # as config.yaml has it
    assert ClinicalNerConfig(max_length=max_length, overlap=1).overlap == 1
    assert ClinicalClassificationConfig(max_length=max_length).window_overlap == 64  # as in runs that there are


@pytest.mark.parametrize(
    ("num_tokens", "starts"), [(1, [0]), (6, [0]), (7, [0, 4]), (10, [0, 4]), (11, [0, 4, 8]), (99, [0, 4, 8])]
)
def test_windows_begin_where_the_one_before_has_its_overlap_left(num_tokens: int, starts: list[int]) -> None:
    assert TextWindows(8, 2, 3, "mean").starts(num_tokens, num_special=2) == starts


REFUSED: list[Refused] = [
    ({"window_overlap": 32}, "window_overlap", "left out with `long_texts` truncate"),
    ({"window_pooling": "max"}, "window_pooling", "left out with `long_texts` truncate"),
    ({"max_windows": 3}, "max_windows", "left out with `long_texts` truncate"),
    ({"long_texts": "windows", "max_length": 64, "window_overlap": 64}, "window_overlap", "below `max_length`"),
    ({"long_texts": "windows", "window_overlap": -1}, "window_overlap", "at least 0"),
    ({"long_texts": "windows", "max_windows": 0}, "max_windows", "at least 1"),
]


@pytest.mark.parametrize("refused", REFUSED)
def test_each_rule_names_flag_value_and_itself(refused: Refused) -> None:
    check_refused(refused, ClinicalClassificationConfig)
