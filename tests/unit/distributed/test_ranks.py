"""The small talk of ranks: numbers as bits, and a rank that has gone told in plain words."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_accum.distributed.ranks import bits_float, float_bits, talking
from hf_accum.errors import RankFailed


@given(st.floats(allow_nan=False))
def test_a_float_survives_as_bits(number: float) -> None:
    bits = float_bits(number)
    assert -(2**63) <= bits < 2**63
    assert math.copysign(1, bits_float(bits)) == math.copysign(1, number)
    assert bits_float(bits) == number


@pytest.mark.parametrize(
    "message",
    [
        "[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:6824. This is ...",
        "[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 12000ms for recv operation to complete",
        "NCCL communicator was aborted on rank 1.",
    ],
)
def test_a_rank_that_has_gone_is_told_in_plain_words(message: str) -> None:
    plain = r"another rank has ended, or has not answered .*`rank_timeout_minutes`"
    with pytest.raises(RankFailed, match=plain) as told, talking():
        raise RuntimeError(message)
    assert message in str(told.value)
    with pytest.raises(RuntimeError, match="same size"), talking():
        raise RuntimeError("tensors of the ranks are not of the same size")
