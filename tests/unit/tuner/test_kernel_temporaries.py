"""What CUDA's kernels take within themselves: by hand from their sources, and alive only meanwhile."""

import pytest
import torch
import torch.nn.functional as F
from attention_cases import DIM, HEADS, LENGTH, NUMBER, ROWS, heads
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hf_accum.device.live_bytes import LiveBytes
from hf_accum.tuner.kernel_temporaries import (
    efficient_backward_bytes,
    embedding_backward_bytes,
    flash_backward_bytes,
    four_bit_product_bytes,
)
from hf_accum.tuner.kernels import cuda_kernels

BF16, FP32 = torch.bfloat16, torch.float32
AMPERE = (8, 6)


def test_of_the_backward_of_attention() -> None:
    with FakeTensorMode():
        query, grouped = heads(BF16), heads(BF16, 2)
        assert flash_backward_bytes(query, query) == 4 * NUMBER * HEADS * 128 * (32 + 1)
        assert flash_backward_bytes(query, grouped) - flash_backward_bytes(query, query) == 2 * ROWS * DIM * 2
        sums = 4 * NUMBER * HEADS * (128 * 64 + LENGTH)
        assert efficient_backward_bytes(query, query, query) == sums
        wide = heads(BF16, dim=128)
        assert efficient_backward_bytes(wide, wide, wide) == 4 * NUMBER * HEADS * (3 * 128 * 128 + LENGTH)
        long = heads(FP32, length=256, dim=128)
        assert efficient_backward_bytes(long, long, long) == 4 * NUMBER * HEADS * (256 * 128 + 256)


def test_they_are_alive_during_the_backward_alone() -> None:
    with FakeTensorMode():
        held = [heads(BF16), heads(BF16), heads(BF16)]
        query, key, value = held
        with LiveBytes(held=held) as live, cuda_kernels(AMPERE):
            output = F.scaled_dot_product_attention(query, key, value)
            gradient = torch.ones_like(output)
            before = live.current_bytes
            output.backward(gradient)
            gradients = 3 * ROWS * DIM * 2
            assert live.peak_bytes == before + gradients + flash_backward_bytes(query, key)
            assert live.current_bytes <= before + gradients


@pytest.mark.parametrize(
    ("num_ids", "num_rows", "num_segments", "num_partial"),
    [(3072, 30_000, 0, 0), (4000, 30_000, 4000, 4400), (4000, 2, 2, 402), (3073, 3073, 3073, 3380)],
)
def test_of_the_gradient_of_an_embedding(num_ids: int, num_rows: int, num_segments: int, num_partial: int) -> None:
    """Ids sorted, their places, and the sort's own (5 of int64 an id), two numbers a segment, one a part; sums."""
    with FakeTensorMode():
        ids = torch.zeros(2, num_ids // 2, dtype=torch.int64) if num_ids % 2 == 0 else torch.zeros(1, num_ids).long()
        expected = 8 * (5 * num_ids + 2 * num_segments + num_partial) + 4 * num_partial * 16 if num_partial else 0
        for dtype in (FP32, BF16):
            gradient = torch.empty(*ids.shape, 16, dtype=dtype)
            assert embedding_backward_bytes(gradient, ids, num_rows) == expected


def test_an_embedding_that_trains_takes_them_in_its_backward() -> None:
    with FakeTensorMode():
        embedding, ids = nn.Embedding(50, 8), torch.zeros(4, 1000, dtype=torch.int64)
        with LiveBytes(held=[embedding.weight, ids]) as live, cuda_kernels(AMPERE):
            states = embedding(ids)
            gradient = torch.ones_like(states)
            before = live.current_bytes
            states.backward(gradient)
            assert live.peak_bytes == before + 50 * 8 * 4 + embedding_backward_bytes(gradient, ids, 50)
            assert live.current_bytes == before + 50 * 8 * 4


def test_a_weight_of_four_bits_is_unpacked_for_its_product() -> None:
    pytest.importorskip("bitsandbytes")
    assert four_bit_product_bytes(torch.zeros(1, dtype=BF16), (256, 128), 64) == 256 * 128 * 2 + 512 * 4
    assert four_bit_product_bytes(torch.zeros(1), (2, 33), 64) == 66 * 4 + 2 * 4
    with FakeTensorMode():
        x, weight, scales = torch.empty(3, 128, dtype=BF16), torch.empty(256 * 64, 1).byte(), torch.empty(512)
        with LiveBytes(held=[x, weight, scales]) as live, cuda_kernels(AMPERE):
            before = live.current_bytes
            y = torch.ops.bitsandbytes.gemm_4bit(x, weight, [256, 128], scales, 64, "nf4")
            assert live.peak_bytes - before == 3 * 256 * 2 + 256 * 128 * 2 + 512 * 4
            assert live.current_bytes - before == y.nbytes == 3 * 256 * 2
