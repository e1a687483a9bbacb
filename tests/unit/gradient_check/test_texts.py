"""Texts of given lengths, and the lengths that a config names."""

import numpy as np
import pytest
from tiny import make_decoder_config
from transformers import AutoConfig, BertConfig

from hf_accum.accumulation.example import Example
from hf_accum.gradient_check.texts import resized, thresholds

IDS = np.array([2, 10, 11, 12, 3])


def text(**features: object) -> Example:
    return Example("0", 5, 5.0, {"input_ids": IDS, "label": 1, **features})


@pytest.mark.parametrize(
    ("length", "ids"),
    [
        (5, [2, 10, 11, 12, 3]),
        (4, [2, 10, 11, 3]),
        (2, [2, 3]),
        (1, [2]),
        (9, [2, 10, 11, 12, 10, 11, 12, 10, 3]),
    ],
)
def test_the_first_and_the_last_token_stay_and_those_between_are_repeated_or_cut(length: int, ids: list[int]) -> None:
    made = resized(text(labels=IDS * 2), length)
    assert made.features["input_ids"].tolist() == ids
    assert made.features["labels"].tolist() == [2 * token for token in ids]
    assert (made.length, made.weight, made.features["label"]) == (length, length, 1)


def test_places_are_those_of_the_same_tokens_and_there_is_always_one() -> None:
    assert resized(text(places=np.array([2, 4])), 9).features["places"].tolist() == [2, 5, 8]
    assert resized(text(places=np.array([3])), 4).features["places"].tolist() == [3]


def test_a_text_of_two_tokens_is_repeated() -> None:
    made = resized(Example("0", 2, 1.0, {"input_ids": np.array([2, 3])}), 5)
    assert made.features["input_ids"].tolist() == [2, 3, 2, 3, 2]


def test_thresholds_are_lengths_below_the_longest_text_with_their_fields() -> None:
    modern = AutoConfig.for_model("modernbert", local_attention=128, max_position_embeddings=8192)
    assert thresholds(modern, 512) == {128: "local_attention"}
    assert thresholds(modern, 128) == {}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    phi = make_decoder_config(
        "phi3", max_position_embeddings=64, original_max_position_embeddings=12, rope_parameters=rope
    )
    assert thresholds(phi, 32)[12] == "original_max_position_embeddings"
    assert thresholds(AutoConfig.for_model("longformer", attention_window=[16, 32]), 64) == {
        16: "attention_window",
        32: "attention_window",
    }
    bigbird = AutoConfig.for_model("big_bird", block_size=8, num_random_blocks=1)
    assert thresholds(bigbird, 64) == {56: "(5 + 2 * num_random_blocks) * block_size"}  # at 56 its forward turns full
    assert thresholds(BertConfig(), 512) == {}
