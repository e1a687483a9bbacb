"""How many steps a run makes, and the learning rate in each."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_accum.run.schedule import count_steps


@given(
    num_examples=st.integers(1, 60),
    effective_batch_size=st.integers(1, 20),
    num_epochs=st.none() | st.integers(1, 4),
    max_steps=st.none() | st.integers(1, 50),
)
def test_steps_are_the_windows_that_there_are(
    num_examples: int, effective_batch_size: int, num_epochs: int | None, max_steps: int | None
) -> None:
    if num_epochs is None and max_steps is None:
        return
    steps = 0
    for _ in range(num_epochs if num_epochs is not None else 1000):
        left = num_examples
        while left > 0 and steps != max_steps:
            left -= effective_batch_size
            steps += 1
    assert count_steps(num_examples, effective_batch_size, num_epochs, max_steps) == steps


@pytest.mark.parametrize("num_epochs", [None, 3])
def test_steps_of_a_dataset_of_unknown_size(num_epochs: int | None) -> None:
    assert count_steps(None, 32, num_epochs, 17) == 17


@pytest.mark.parametrize(("max_steps", "steps"), [(None, 2 + 3 + 1), (4, 4), (1, 1), (9, 6)])
def test_steps_of_passes_of_different_sizes(max_steps: int | None, steps: int) -> None:
    assert count_steps([8, 9, 1], 4, 3, max_steps) == steps
