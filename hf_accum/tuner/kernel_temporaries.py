"""What CUDA's kernels allocate and free within themselves, where a trace sees only what they return.

The bytes are from the sources that each function names, of attention from those of `hf_accum.tuner.kernels`. Not
counted is the scratch memory of cuDNN's convolutions, and of flash attention that cuts few keys into parts (a forward
of few heads).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

HALVES = (torch.float16, torch.bfloat16)


class KernelTemporaries(TorchDispatchMode):
    """Makes a tensor of the bytes that a kernel takes within itself, and frees it at its end."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        num_bytes = 0
        if func is aten._scaled_dot_product_flash_attention_backward.default:
            num_bytes = flash_backward_bytes(*args[1:3])
        elif func is aten._scaled_dot_product_efficient_attention_backward.default:
            num_bytes = efficient_backward_bytes(*args[1:4])
        elif func is aten.embedding_dense_backward.default:
            num_bytes = embedding_backward_bytes(args[0], args[1], args[2])
        elif getattr(func, "namespace", "") == "bitsandbytes" and func._opname == "gemm_4bit":
            num_bytes = four_bit_product_bytes(args[0], args[2], args[4])
        held = torch.empty(num_bytes, dtype=torch.uint8) if num_bytes else None
        result = func(*args, **(kwargs or {}))
        del held
        return result


def flash_backward_bytes(query: Tensor, key: Tensor) -> int:
    """Of flash attention's backward: the gradient of queries summed in float32, a number a query, and of grouped keys
    and values gradients for each head of queries.
    """
    num_examples, num_heads, length, head_dim = query.shape
    rows = num_examples * num_heads * _up(length, 128)
    grouped = 2 * num_examples * num_heads * key.shape[-2] * head_dim * query.element_size()
    return 4 * rows * (_up(head_dim, 32) + 1) + (grouped if key.shape[-3] != num_heads else 0)


def efficient_backward_bytes(query: Tensor, key: Tensor, value: Tensor) -> int:
    """Of the memory-efficient backward, at most: gradients summed in float32, and a number a query.

    That of queries always; of 16-bit keys and values with more than 64 numbers a head too, as the smaller kernels do
    (`kOutputInRF`). In float32 the numbers come from a product in memory, before the sums are there.
    """
    num_examples, num_heads, length, head_dim = query.shape
    of_queries = _up(length, 128) * _up(head_dim, 64)
    of_keys = 0
    if query.dtype in HALVES and max(head_dim, value.shape[-1]) > 64:
        of_keys = _up(key.shape[-2], 128) * (_up(head_dim, 128) + _up(value.shape[-1], 128))
    product = 0 if query.dtype in HALVES else length * value.shape[-1]
    return 4 * num_examples * num_heads * (max(of_queries + of_keys, product) + length)


def embedding_backward_bytes(gradient: Tensor, ids: Tensor, num_rows: int) -> int:
    """Of the gradient of an embedding with `num_rows` rows: nothing up to 3,072 ids.

    More are sorted, and of one id the gradients of ten at a time are summed in float32 first. Counted at most: as if
    each id were another one, as far as there are rows. The sort's own memory is taken as twice that of the ids.

    Source: `embedding_backward_cuda_kernel` in torch's EmbeddingBackwardKernel.cu (`max_partial_segment`).
    """
    num_ids = ids.numel()
    if num_ids <= 3072:
        return 0
    num_segments = min(num_ids, num_rows)
    num_partial = num_ids // 10 + num_segments
    of_ids = 8 * (5 * num_ids + 2 * num_segments + num_partial)
    return of_ids + max(4, gradient.element_size()) * num_partial * gradient.shape[-1]


def four_bit_product_bytes(input: Tensor, shape: Sequence[int], block_size: int) -> int:
    """Of a product with a weight of 4 bits, at most: the weight in the input's type, and its scales in float32.

    bitsandbytes takes this way where it has no kernel of its own for the sizes (more than 1,536 rows of input, say).

    Source: `gemm_4bit` of bitsandbytes 0.50, backends/cuda/ops.py.
    """
    num_weights = math.prod(shape)
    return num_weights * input.element_size() + 4 * _up(num_weights, block_size) // block_size


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
