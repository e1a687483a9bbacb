"""A line of metrics.jsonl: sums over the ranks, and the worst of them."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from window_cases import make_window

from hf_accum.accumulation.example import Example
from hf_accum.distributed.ranks import float_bits
from hf_accum.run.step_metrics import PendingStep, json_safe, merged


def test_counts_are_summed_and_times_and_bytes_are_those_of_the_worst_rank() -> None:
    examples = [Example(f"{i}", 3 + i, 0.5, {}) for i in range(4)]
    pending = PendingStep(make_window(examples, examples[0], whole=examples), 0.0, 2.5, 1e-3, 0.0, 0)
    columns: list[Any] = [
        [float_bits(1.25), float_bits(4.75)],  # losses
        [20, 30],  # padded tokens
        [2, 3],  # micro-batches
        [float_bits(0.5), float_bits(2.0)],  # seconds
        [900, 700],  # bytes
        [0, 1],  # replays
        [float_bits(0.25), float_bits(0.125)],  # waited for data
        [1000, 1200],  # reserved bytes
        [2, 1],  # retries of the allocator
    ]
    line = merged(pending, columns)
    assert not {"reserved_memory_bytes", "num_alloc_retries"} & line.as_json().keys()  # without an allocator
    of_device = merged(replace(pending, allocator=(1000, 2)), columns).as_json()
    assert (of_device["reserved_memory_bytes"], of_device["num_alloc_retries"]) == (1200, 3)
    assert line.loss == pytest.approx((1.25 + 4.75) / (4 * 0.5))
    assert (line.num_padded_tokens, line.num_micro_batches, line.num_oom_replays) == (50, 5, 1)
    assert (line.step_seconds, line.peak_memory_bytes, line.data_wait_share) == (2.0, 900, 0.125)
    assert (line.num_examples, line.num_items, line.num_tokens) == (4, 2.0, 3 + 4 + 5 + 6)
    assert (line.step, line.epoch, line.grad_norm, line.learning_rate) == (1, 0, 2.5, 1e-3)


values = st.recursive(
    st.none() | st.integers() | st.text() | st.floats(),
    lambda inner: st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), values))
def test_what_json_does_not_have_is_null_and_all_else_as_it_was(given: dict[str, Any]) -> None:
    def check(before: Any, after: Any) -> None:
        if isinstance(before, dict):
            assert before.keys() == after.keys()
            for name in before:
                check(before[name], after[name])
        elif isinstance(before, float) and not math.isfinite(before):
            assert after is None
        else:
            assert after == before

    safe = json_safe(given)
    json.dumps(safe, allow_nan=False)
    check(given, safe)
