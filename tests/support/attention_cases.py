"""Queries, keys and values of attention, of a few sizes."""

import torch
from torch import Tensor

NUMBER, HEADS, LENGTH, DIM = 2, 4, 64, 32
ROWS = NUMBER * HEADS * LENGTH


def heads(dtype: torch.dtype, num_heads: int = HEADS, length: int = LENGTH, dim: int = DIM) -> Tensor:
    """Those of so many heads; numbers that train."""
    return torch.empty(NUMBER, num_heads, length, dim, dtype=dtype, requires_grad=True)
